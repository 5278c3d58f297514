"""Pictures: detectors side by side on the same images, training curves, accuracy against size."""

from ..reporting.work_dir import read_scalars
from .comparison import Column, compare, draw_comparison
from .curves import draw_curves
from .tradeoff import Point, draw_tradeoff

__all__ = [
    'Column',
    'Point',
    'compare',
    'draw_comparison',
    'draw_curves',
    'draw_tradeoff',
    'read_scalars',
]
