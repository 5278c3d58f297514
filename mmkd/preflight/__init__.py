"""Every check before a run: one list (:data:`CHECKS`), which all tools and the hooks read."""

from .advice import Advice
from .planned_run import PlannedRun
from .table import CHECKS, Check, Verdict, examine, require

__all__ = ['CHECKS', 'Advice', 'Check', 'PlannedRun', 'Verdict', 'examine', 'require']
