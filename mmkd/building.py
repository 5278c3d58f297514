"""Build a detector of a config, with a line for what is wrong in the config."""

from __future__ import annotations

import copy
import re
from importlib.util import find_spec
from typing import Any

from mmdet.registry import MODELS
from mmengine.registry import MODELS as ROOT
from mmengine.registry import DefaultScope

from .errors import ConfigError, UserError, did_you_mean
from .random_state import preserve_rng_state
from .types import Detector

# How mmengine's registries say so; its message in full fills a page.
UNREGISTERED = re.compile(r'(\S+) is not in the \S+ registry')
# ``init_cfg`` types that read a file.
PRETRAINED = ('Pretrained', 'ConvertedCheckpoint')

# What to do, by words of what a constructor raises.
HINTS = {
    "argument 'pretrained'": (
        "; MMDetection 3 reads backbone.init_cfg=dict(type='Pretrained', checkpoint=…)"
    ),
    "argument 'to_rgb'": '; MMDetection 3 calls it bgr_to_rgb',
    'process group': (
        '; a normalization such as MMSyncBN needs several processes: add --launcher, or write BN'
    ),
}


def build_detector(config: dict[str, Any], key: str, scope: str = 'mmdet') -> Detector:
    """A detector with weights that mean nothing; random numbers stay as they are.

    Args:
        config: Its ``model`` config, which is not changed.
        key: The config key, for messages.
        scope: The registry that its modules are looked up in first.

    Raises:
        ConfigError: A type that is not registered, or arguments that it does not take.
    """
    try:
        with preserve_rng_state(), DefaultScope.overwrite_default_scope(scope):
            return MODELS.build(copy.deepcopy(config))
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        name = unregistered(error)
        if name is not None:
            raise ConfigError(f'{key}: {_unregistered_message(name, scope)}') from error
        words = ' '.join(str(error).split())
        if isinstance(error, KeyError):
            if 'must contain the key "type"' in words:
                raise ConfigError(f'{key}: must have a type, and each part of it, too') from error
            raise  # of code, and not of what a config gives
        kind = '' if '__init__()' in words else f'{type(error).__name__}: '
        hint = next((how for what, how in HINTS.items() if what in words), '')
        raise ConfigError(f'{key}: cannot be built: {kind}{words[:300]}{hint}') from error
    except (
        ImportError,
        RuntimeError,
    ) as error:  # mmdet's own words for a package that is not there
        words = ' '.join(str(error).split())
        if not isinstance(error, ImportError) and 'install' not in words:
            raise
        raise ConfigError(f'{key}: needs a package that is not installed: {words[:300]}') from error


def build_random(config: dict[str, Any], key: str, scope: str = 'mmdet') -> Detector:
    """:func:`build_detector`, with the weights initialised; pretrained ones are not read.

    Constructors leave some weights undefined, such as the level embedding of Deformable DETR.
    """
    detector = build_detector(without_pretrained(config), key, scope)
    with preserve_rng_state(), DefaultScope.overwrite_default_scope(scope):
        detector.init_weights()
    return detector


def without_pretrained(config: Any) -> Any:
    """A copy of a model config that starts from no file."""
    if isinstance(config, (list, tuple)):
        return type(config)(without_pretrained(each) for each in config)
    if not isinstance(config, dict):
        return copy.deepcopy(config)
    reads = {'pretrained'}
    if any(name in str(config.get('init_cfg')) for name in PRETRAINED):
        reads.add('init_cfg')
    copied = type(config)()
    for key, value in config.items():
        copied[key] = None if key in reads else without_pretrained(value)
    return copied


def unregistered(error: BaseException) -> str | None:
    """The type that a registry did not have, None for any other exception."""
    found = UNREGISTERED.search(str(error)) if isinstance(error, KeyError) else None
    return found[1].strip('\'"`') if found else None


def _unregistered_message(name: str, scope: str) -> str:
    package = name.partition('.')[0] if '.' in name else scope
    known = package in ROOT.children or package == ROOT.scope
    if not known and find_spec(package) is None:
        where = f'type {name!r}' if '.' in name else f'default_scope={scope!r}'
        return (
            f'{where} needs the package {package}, which is not installed; install it, or put its folder on '
            f'PYTHONPATH'
        )
    registered = ROOT.children[package].module_dict if package in ROOT.children else {}
    hint = did_you_mean(name.rpartition('.')[2], {**registered, **MODELS.module_dict})
    return (
        f'type {name!r} is not registered{hint}; name its module in custom_imports if it is yours'
    )
