"""The drawn data set of the demo, and the check for missing files before a run."""

from .drawn_scenes import DrawnScenesSettings, prepare_drawn_scenes

__all__ = ['DrawnScenesSettings', 'prepare_drawn_scenes']
