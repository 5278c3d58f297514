"""The kinds of teachers: a live detector, a moving average of the student, or stored outputs."""

from .averaged import AveragedTeacher
from .base import Teacher
from .cached import CachedTeacher
from .declared import CACHE_OPTIONS, TEACHER, DeclaredTeachers
from .live import LiveTeacher

__all__ = [
    'CACHE_OPTIONS',
    'TEACHER',
    'AveragedTeacher',
    'CachedTeacher',
    'DeclaredTeachers',
    'LiveTeacher',
    'Teacher',
]
