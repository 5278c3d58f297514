"""The training step: student, teachers and the losses between them."""

from .config_access import answer_for_student
from .distiller import Distiller
from .loss_entry import LossEntry
from .schedule import Schedule

__all__ = ['Distiller', 'LossEntry', 'Schedule']

answer_for_student()
