"""Measure, compare and draw detectors and training runs. The training step does not import this package."""
