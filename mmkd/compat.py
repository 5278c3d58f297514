"""Check that a supported OpenMMLab stack can be imported, and name what to install if not.

Two families of distributions provide the same import names: OpenMMLab's own (``mmdet``, ``mmcv``,
``mmengine``) and their continuation (``onedl-mmdetection``, ``onedl-mmcv``, ``onedl-mmengine``). The
check imports the modules instead of reading the installed distributions, so it accepts either family.
"""

from __future__ import annotations

import importlib
import importlib.util
import re

from .errors import UserError

# The first supported and the first unsupported version, in the order of their imports.
SUPPORTED = {
    'mmengine': ('0.10.4', '1.0'),
    'mmcv': ('2.1.0', '3.0'),
    'mmdet': ('3.3.0', '4.0'),
}

# Without isolation, because the build of mmcv's ops needs torch.
INSTALL = (
    '`make setup` in a checkout installs a tested set; elsewhere, in this order: '
    '`pip install torch setuptools wheel`, `pip install --no-build-isolation "mmkd[onedl]"` '
    '(or "mmkd[openmmlab]" for mmdet 3.3.0 and mmcv 2.1.0)'
)


class StackError(UserError, ImportError):
    """torch, mmengine, mmcv or mmdet is missing, cannot be imported or has an unsupported version."""


def check_stack() -> None:
    """Import mmengine, mmcv with its compiled ops and mmdet, and check their versions.

    Raises:
        StackError: A package is missing, broken or unsupported; the message names what to install.
    """
    if importlib.util.find_spec('torch') is None:
        raise StackError(f'mmkd needs torch, which is not installed; {INSTALL}')
    for name, (lowest, limit) in SUPPORTED.items():
        version = _version_of(name)
        if not _version_key(lowest) <= _version_key(version) < _version_key(limit):
            raise StackError(
                f'mmkd supports {name} >= {lowest}, < {limit}, and {version} is installed; '
                f'{INSTALL}'
            )
        if name == 'mmcv':
            _check_ops()


def _version_of(name: str) -> str:
    if importlib.util.find_spec(name) is None:
        raise StackError(f'mmkd needs {name}, which is not installed; {INSTALL}')
    try:
        return importlib.import_module(name).__version__
    except (ImportError, AssertionError) as error:
        # mmdet asserts the versions of mmcv and mmengine that it supports.
        raise StackError(f'{name} is installed but does not import ({error}); {INSTALL}') from error


def _check_ops() -> None:
    if importlib.util.find_spec('mmcv._ext') is None:
        raise StackError(
            'the installed mmcv has no compiled ops, which detectors need (it is mmcv-lite, or a build '
            f'without MMCV_WITH_OPS=1); uninstall it; {INSTALL}'
        )
    try:
        importlib.import_module('mmcv.ops')
    except ImportError as error:
        raise StackError(
            f"mmcv's compiled ops cannot be loaded ({error}); most likely they were built for another "
            f'version of torch; uninstall mmcv; {INSTALL}'
        ) from error


def _version_key(version: str) -> tuple[int, ...]:
    numbers = [int(number) for number in re.findall(r'\d+', version)[:3]]
    return tuple(numbers + [0] * (3 - len(numbers)))
