"""A teacher's answers, written to disk once and read in place of asking it."""

from .teacher import CachedTeacher

__all__ = ['CachedTeacher']
