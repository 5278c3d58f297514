"""What a trained student becomes: a folder to publish, predictions for images, an ONNX file.

The last is in :mod:`.exporting`, which registers operators that need a recent torch.
"""

from .prediction import Predicted, find_images, predict
from .publishing import Published, publish

__all__ = ['Predicted', 'Published', 'find_images', 'predict', 'publish']
