"""Data sets: drawn scenes, some of a data set's classes; and the checks before a run."""

from .class_subset import ClassSubsetDataset
from .drawn_scenes import DrawnScenesSettings, prepare_drawn_scenes

__all__ = ['ClassSubsetDataset', 'DrawnScenesSettings', 'prepare_drawn_scenes']
