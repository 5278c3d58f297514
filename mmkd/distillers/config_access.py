"""Let the config of a distiller return the keys of its student's config.

mmdet's ``init_detector`` and other tools read keys such as ``config.model.backbone`` of any config.
"""

from __future__ import annotations

from typing import Any

from mmengine.config import ConfigDict

_missing = ConfigDict.__missing__


def _student_value(config: ConfigDict, key: Any) -> Any:
    """Return a key that a distiller's config lacks from its student's. Not called by ``in`` and ``get``."""
    kind, student = config.get('type'), config.get('student')
    if str(kind).rpartition('.')[2] == 'Distiller' and isinstance(student, dict) and key in student:
        return student[key]
    return _missing(config, key)


def delegate_config_to_student() -> None:
    """Install the access to the student's keys in mmengine's ``ConfigDict``, once for the process."""
    ConfigDict.__missing__ = _student_value
