"""What a trained student becomes: a folder to publish, and predictions for images."""

from .prediction import Predicted, find_images, predict
from .publishing import Published, publish

__all__ = ['Predicted', 'Published', 'find_images', 'predict', 'publish']
