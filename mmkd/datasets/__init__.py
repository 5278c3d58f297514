"""Data sets, and the checks before a run."""

from .class_subset import ClassSubsetDataset

__all__ = ['ClassSubsetDataset']
