"""Knowledge distillation for MMDetection: importing it registers everything into ``mmdet.registry``."""

from .compat import check_stack

check_stack()

from . import (  # noqa: E402
    alignments,
    connectors,
    converters,
    datasets,
    distillers,
    f1_metric,
    hooks,
    losses,
    models,
    sharding,
    teachers,
)
from .distillers import Distiller  # noqa: E402
from .version import __version__  # noqa: E402

__all__ = [
    'Distiller',
    '__version__',
    'alignments',
    'connectors',
    'converters',
    'datasets',
    'distillers',
    'f1_metric',
    'hooks',
    'losses',
    'models',
    'sharding',
    'teachers',
]
