"""Knowledge distillation for MMDetection. The import registers all classes in mmdet's registries."""

import sys

from .version import __version__

# `python -m mmkd` starts a tool in another process, so it must not import torch. While Python looks for the
# module to run, sys.argv[0] is '-m'.
if sys.argv[:1] != ['-m']:
    from .compat import check_stack

    check_stack()

    from . import (
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
        visualization,
    )
    from .distillers import Distiller

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
        'visualization',
    ]
