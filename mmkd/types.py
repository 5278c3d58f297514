"""Type aliases."""

from __future__ import annotations

from typing import Any

#: A detector of mmdet, or one of its heads. It is Any because torch types every attribute of a module as
#: Tensor or Module, and neither has the methods and settings of a head.
Detector = Any
