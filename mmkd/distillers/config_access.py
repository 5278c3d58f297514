"""A distiller's config answers for its student's, as the distiller itself does for the student.

mmdet's ``init_detector`` and other tools read ``config.model.backbone`` of whatever they are given.
"""

from __future__ import annotations

from typing import Any

from mmengine.config import ConfigDict

_missing = ConfigDict.__missing__


def _student_value(config: ConfigDict, key: Any) -> Any:
    """What a config has not itself; only asked of a key that is not there, and never by ``in`` or ``get``."""
    kind, student = config.get('type'), config.get('student')
    if str(kind).rpartition('.')[2] == 'Distiller' and isinstance(student, dict) and key in student:
        return student[key]
    return _missing(config, key)


def delegate_config_to_student() -> None:
    """Let configs of distillers give the keys of their students."""
    ConfigDict.__missing__ = _student_value
