"""Data sets, their folders, and what is added to them in use."""

from .class_subset import ClassSubsetDataset
from .loading import DropFlatBoxes

__all__ = ['ClassSubsetDataset', 'DropFlatBoxes']
