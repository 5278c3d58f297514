"""The training step: student, teacher and the losses between them."""

from .distiller import Distiller
from .loss_entry import LossEntry
from .schedule import Schedule
from .teacher import Teacher

__all__ = ['Distiller', 'LossEntry', 'Schedule', 'Teacher']
