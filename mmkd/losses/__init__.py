"""Distillation losses: tensors of student and teacher in, a scalar out."""

from .contrastive import Contrastive
from .giou import GIoU
from .kl_divergence import KLDivergence
from .regression import L1, MSE, SmoothL1

__all__ = ['L1', 'MSE', 'Contrastive', 'GIoU', 'KLDivergence', 'SmoothL1']
