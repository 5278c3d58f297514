"""Use a trained student: publish it, predict on images, export it to ONNX.

The ONNX export is in :mod:`.exporting`, which registers operators that need a recent torch.
"""

from .prediction import Predicted, find_images, predict
from .publishing import Published, publish

__all__ = ['Predicted', 'Published', 'find_images', 'predict', 'publish']
