"""Knowledge distillation for MMDetection: importing it registers everything into ``mmdet.registry``."""

import sys

from .version import __version__

# `python -m mmkd` only starts a tool in a process of its own, and answers at once: while Python looks for
# the module to run, sys.argv[0] is '-m'.
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
