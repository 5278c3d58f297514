"""Models whose parameters are shared out among processes: the student's strategy, the teacher's shards."""

from .student import StudentFSDPStrategy

__all__ = ['StudentFSDPStrategy']
