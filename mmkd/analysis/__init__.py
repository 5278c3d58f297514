"""What measures, compares and draws. The training core imports nothing of it."""
