"""Families of detectors: how each kind runs as teacher."""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError
from ..types import Detector
from .base import Family
from .single_stage import SingleStage
from .transformer import Transformer
from .two_stage import TwoStage

__all__ = ['FAMILIES', 'Family', 'SingleStage', 'Transformer', 'TwoStage', 'family_of']

# The first family that covers a detector runs it. The last covers all detectors: insert your own before it.
FAMILIES: list[type[Family]] = [TwoStage, Transformer, SingleStage, Family]


def family_of(detector: Detector, **options: Any) -> Family:
    """Return the family that runs a detector, with the options of the ``teacher`` config.

    Raises:
        ConfigError: The model is not an mmdet detector: it has no method ``extract_feat``.
    """
    for family in FAMILIES:
        if family.covers(detector):
            return family(detector, **options)
    raise ConfigError(
        f'a detector must have a method extract_feat, but a {type(detector).__name__} has none; use a '
        f'detector of mmdet, or derive from its BaseDetector'
    )
