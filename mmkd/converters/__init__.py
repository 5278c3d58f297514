"""Convert the names of published backbone weights to those of mmkd and MMDetection models."""

from .convert import FORMATS, convert
from .initializer import ConvertedCheckpoint
from .reading import read_weights

__all__ = ['FORMATS', 'ConvertedCheckpoint', 'convert', 'read_weights']
