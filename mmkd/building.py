"""Build a detector from a config, with a message of one line for each error in the config."""

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

# The error message of mmengine's registries, shortened: the full message fills a page.
UNREGISTERED = re.compile(r'(\S+) is not in the \S+ registry')
# ``init_cfg`` types that read a file.
PRETRAINED = ('Pretrained', 'ConvertedCheckpoint')

# What to do about an exception of a constructor, by words of its message.
HINTS = {
    "argument 'pretrained'": (
        "; MMDetection 3 reads backbone.init_cfg=dict(type='Pretrained', checkpoint=…)"
    ),
    "argument 'to_rgb'": '; MMDetection 3 calls it bgr_to_rgb',
    'process group': (
        '; a normalization layer such as MMSyncBN needs several processes: add --launcher, or use BN'
    ),
}


def build_detector(config: dict[str, Any], key: str, scope: str = 'mmdet') -> Detector:
    """Build a detector without initialising its weights. The state of the random numbers does not change.

    Args:
        config: The ``model`` config, which is not changed.
        key: The config key, for messages.
        scope: The registry scope in which modules are looked up first.

    Raises:
        ConfigError: A type is not registered, or does not accept its arguments.
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
                raise ConfigError(
                    f'{key}: must have a type, and so must each part of it'
                ) from error
            raise  # a fault of the code, not of the config
        kind = '' if '__init__()' in words else f'{type(error).__name__}: '
        hint = next((how for what, how in HINTS.items() if what in words), '')
        raise ConfigError(f'{key}: cannot be built: {kind}{words[:300]}{hint}') from error
    except (ImportError, RuntimeError) as error:
        # mmdet raises a RuntimeError that names what to install for some missing packages.
        words = ' '.join(str(error).split())
        if not isinstance(error, ImportError) and 'install' not in words:
            raise
        raise ConfigError(f'{key}: needs a package that is not installed: {words[:300]}') from error


def build_random(config: dict[str, Any], key: str, scope: str = 'mmdet') -> Detector:
    """Build a detector and initialise its weights randomly, without reading pretrained weights.

    :func:`build_detector` alone leaves some weights undefined, such as the level embedding of Deformable
    DETR.
    """
    detector = build_detector(without_pretrained(config), key, scope)
    with preserve_rng_state(), DefaultScope.overwrite_default_scope(scope):
        detector.init_weights()
    return detector


def without_pretrained(config: Any) -> Any:
    """Return a copy of a model config that reads no pretrained weights."""
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
    """Return the type that a registry did not find, or None for any other exception."""
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
    return f'type {name!r} is not registered{hint}; if it is your own, add its module to custom_imports'
