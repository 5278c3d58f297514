"""Detector modules that MMDetection lacks: plain vision transformers and necks for them."""

from .layer_decay import LayerDecayConstructor
from .simple_feature_pyramid import ClassTokenPyramid, SimpleFeaturePyramid
from .vision_transformer import VisionTransformer

__all__ = [
    'ClassTokenPyramid',
    'LayerDecayConstructor',
    'SimpleFeaturePyramid',
    'VisionTransformer',
]
