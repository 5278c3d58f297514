"""Data sets, their folders, and changes to a data set during a run."""

from .class_subset import ClassSubsetDataset
from .loading import DropFlatBoxes

__all__ = ['ClassSubsetDataset', 'DropFlatBoxes']
