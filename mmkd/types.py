"""Names for types that torch does not have."""

from __future__ import annotations

from typing import Any

#: A detector of mmdet, or one of its heads. Any, since torch types every attribute of a module as Tensor or
#: Module, and neither has the methods and settings of a head.
Detector = Any
