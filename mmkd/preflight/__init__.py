"""The checks before a run: one list (:data:`CHECKS`), shared by all tools and the hooks."""

from .advice import Advice
from .planned_run import PlannedRun
from .table import CHECKS, Check, Verdict, examine, require

__all__ = ['CHECKS', 'Advice', 'Check', 'PlannedRun', 'Verdict', 'examine', 'require']
