"""Distillation losses: tensors of student and teacher in, a scalar out."""

from .attention_transfer import AttentionTransfer
from .ciou import CIoU
from .contrastive import Contrastive
from .cwd import CWD
from .dist import DIST
from .giou import GIoU
from .kl_divergence import KLDivergence
from .pkd import PKD
from .regression import L1, MSE, SmoothL1
from .rkd import RKDAngle, RKDDistance

__all__ = [
    'CWD',
    'DIST',
    'L1',
    'MSE',
    'PKD',
    'AttentionTransfer',
    'CIoU',
    'Contrastive',
    'GIoU',
    'KLDivergence',
    'RKDAngle',
    'RKDDistance',
    'SmoothL1',
]
