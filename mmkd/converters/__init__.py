"""Public backbone weights, from the names of those who publish them to those of models here."""

from .convert import FORMATS, convert
from .initializer import ConvertedCheckpoint
from .reading import read_weights

__all__ = ['FORMATS', 'ConvertedCheckpoint', 'convert', 'read_weights']
