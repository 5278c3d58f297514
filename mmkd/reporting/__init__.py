"""Tables of finished trainings, read from their work directories."""
