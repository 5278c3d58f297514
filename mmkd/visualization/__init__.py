"""Pictures: detectors side by side on the same images, and training curves."""

from .comparison import Column, compare, draw_comparison
from .curves import draw_curves, read_scalars

__all__ = ['Column', 'compare', 'draw_comparison', 'draw_curves', 'read_scalars']
