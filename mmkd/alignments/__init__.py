"""Alignments: pair the recorded outputs of student and teacher."""

from .base import Alignment, Pair, Step
from .class_map import ClassMap, shared_labels
from .decoder_layers import layer_map
from .dense import (
    DenseBoxAlignment,
    DenseCenternessAlignment,
    DenseClassAlignment,
    DenseDistributionAlignment,
    DenseObjectnessAlignment,
)
from .encoder_memory import EncoderMemoryAlignment, QueryWeightedFeatureAlignment
from .features import FeatureAlignment, ForegroundFeatureAlignment
from .queries import (
    HungarianQueryAlignment,
    IndexQueryAlignment,
    SharedQueryAlignment,
)
from .roi import RoIBoxAlignment, RoIClassAlignment
from .rpn import RPNBoxAlignment, RPNClassAlignment

__all__ = [
    'Alignment',
    'ClassMap',
    'DenseBoxAlignment',
    'DenseCenternessAlignment',
    'DenseClassAlignment',
    'DenseDistributionAlignment',
    'DenseObjectnessAlignment',
    'EncoderMemoryAlignment',
    'FeatureAlignment',
    'ForegroundFeatureAlignment',
    'HungarianQueryAlignment',
    'IndexQueryAlignment',
    'Pair',
    'QueryWeightedFeatureAlignment',
    'RPNBoxAlignment',
    'RPNClassAlignment',
    'RoIBoxAlignment',
    'RoIClassAlignment',
    'SharedQueryAlignment',
    'Step',
    'layer_map',
    'shared_labels',
]
