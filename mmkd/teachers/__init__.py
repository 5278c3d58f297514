"""What a teacher is: a live detector, an average of the student, or stored outputs."""

from .averaged import AveragedTeacher
from .base import Teacher
from .cached import CachedTeacher
from .declared import TEACHER, DeclaredTeachers
from .live import LiveTeacher

__all__ = [
    'TEACHER',
    'AveragedTeacher',
    'CachedTeacher',
    'DeclaredTeachers',
    'LiveTeacher',
    'Teacher',
]
