"""Detections on an image, matched to the ground truth and drawn side by side."""

from .boxes import Boxes, Matches, match_boxes, predicted_boxes
from .images import find_indices, ground_truth, image_path, load_image, spread_indices
from .panels import Column, as_image, draw_panels

__all__ = [
    'Boxes',
    'Column',
    'Matches',
    'as_image',
    'draw_panels',
    'find_indices',
    'ground_truth',
    'match_boxes',
    'load_image',
    'predicted_boxes',
    'image_path',
    'spread_indices',
]
