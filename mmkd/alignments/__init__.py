"""Bring outputs of teacher and student into correspondence."""

from .base import Alignment, Pair, Step
from .class_map import ClassMap
from .features import FeatureAlignment
from .roi import RoIBoxAlignment, RoIClassAlignment
from .rpn import RPNBoxAlignment, RPNClassAlignment

__all__ = [
    'Alignment',
    'ClassMap',
    'FeatureAlignment',
    'Pair',
    'RPNBoxAlignment',
    'RPNClassAlignment',
    'RoIBoxAlignment',
    'RoIClassAlignment',
    'Step',
]
