"""How each kind of detector runs as teacher."""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError
from ..types import Detector
from .base import Family
from .single_stage import SingleStage
from .transformer import Transformer
from .two_stage import TwoStage

__all__ = ['FAMILIES', 'Family', 'SingleStage', 'Transformer', 'TwoStage', 'family_of']

# The first that covers a detector runs it; insert your own before the last, which covers all.
FAMILIES: list[type[Family]] = [TwoStage, Transformer, SingleStage, Family]


def family_of(detector: Detector, **options: Any) -> Family:
    """The family of a detector, with the options of the ``teacher`` config.

    Raises:
        ConfigError: It is no detector of mmdet, which has a method ``extract_feat``.
    """
    for family in FAMILIES:
        if family.covers(detector):
            return family(detector, **options)
    raise ConfigError(
        f'a {type(detector).__name__} has no method extract_feat, by which mmkd runs detectors; use one of '
        f"mmdet's detectors, or derive from its BaseDetector"
    )
