"""Models with weights sharded over processes: a strategy for the student, and shards of the teacher."""

from .student import StudentFSDPStrategy

__all__ = ['StudentFSDPStrategy']
