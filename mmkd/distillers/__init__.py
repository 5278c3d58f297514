"""The training step: student, teachers and the losses between them."""

from .distiller import Distiller
from .loss_entry import LossEntry
from .schedule import Schedule

__all__ = ['Distiller', 'LossEntry', 'Schedule']
