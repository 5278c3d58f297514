"""What detectors find in an image, judged against the ground truth and drawn side by side."""

from .boxes import Boxes, Judgement, judge, of_sample
from .images import find_indices, ground_truth, load_image, path_of, spread
from .panels import Column, as_image, draw_panels

__all__ = [
    'Boxes',
    'Column',
    'Judgement',
    'as_image',
    'draw_panels',
    'find_indices',
    'ground_truth',
    'judge',
    'load_image',
    'of_sample',
    'path_of',
    'spread',
]
