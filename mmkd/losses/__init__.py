"""Distillation losses: tensors of student and teacher in, a scalar out."""

from .attention_transfer import AttentionTransfer
from .bounded_regression import BoundedRegression
from .boxes import CIoU, GIoU, IoU
from .contrastive import Contrastive
from .cwd import CWD
from .dist import DIST
from .dkd import DKD
from .fgd import FGD
from .kl_divergence import KLDivergence
from .pkd import PKD
from .regression import L1, MSE, SmoothL1
from .rkd import RKDAngle, RKDDistance
from .soft_label_bce import SoftLabelBCE
from .weighted_cross_entropy import WeightedCrossEntropy

__all__ = [
    'CWD',
    'DIST',
    'DKD',
    'FGD',
    'L1',
    'MSE',
    'PKD',
    'AttentionTransfer',
    'BoundedRegression',
    'CIoU',
    'Contrastive',
    'GIoU',
    'IoU',
    'KLDivergence',
    'RKDAngle',
    'RKDDistance',
    'SmoothL1',
    'SoftLabelBCE',
    'WeightedCrossEntropy',
]
