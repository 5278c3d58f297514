"""The training step: a student, its teachers and the distillation losses."""

from .config_access import delegate_config_to_student
from .distiller import Distiller
from .loss_entry import LossEntry
from .schedule import Schedule

__all__ = ['Distiller', 'LossEntry', 'Schedule']

delegate_config_to_student()
