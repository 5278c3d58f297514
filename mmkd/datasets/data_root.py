"""Move the data of a config to another folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.config import Config

from ..errors import ConfigError

DATA_SECTIONS = tuple(
    f'{mode}_{part}' for mode in ('train', 'val', 'test') for part in ('dataloader', 'evaluator')
)


def replace_data_root(cfg: Config, new: str) -> None:
    """Move every dataset and evaluator of a config from its ``data_root`` to another, in place.

    ``data_root`` at the top of an MMDetection config is a plain variable: changing it alone leaves
    the data loaders, which have used it already, as they were.

    Args:
        cfg: A config with a top-level ``data_root``.
        new: The folder to use instead; with or without a slash at the end.

    Raises:
        ConfigError: The config has no ``data_root``, or none of its data lies there.
    """
    old = cfg.get('data_root')
    if not isinstance(old, str) or not old:
        raise ConfigError(
            'this config has no top-level data_root to change; set that of each data loader: '
            f'--cfg-options train_dataloader.dataset.data_root={new}'
        )
    old_folder, new_folder = old.rstrip('/') + '/', str(new).rstrip('/') + '/'
    changed = 0
    # Read all first: `test_dataloader = val_dataloader` may be one object, to be changed once.
    places = {
        (id(owner), key): (owner, key, value)
        for section in DATA_SECTIONS
        for owner, key, value, _ in leaves(cfg.get(section), section)
        if isinstance(value, str) and (value + '/' == old_folder or value.startswith(old_folder))
    }
    for owner, key, value in places.values():
        owner[key] = new_folder + value[len(old_folder) :]
        changed += 1
    if not changed:
        raise ConfigError(
            f'data_root={new} would change nothing: no dataset of this config lies under {old}; '
            'set e.g. train_dataloader.dataset.data_root instead'
        )
    cfg.data_root = new_folder


def leaves(node: Any, where: str) -> Iterator[tuple[Any, Any, Any, str]]:
    """``(container, key, value, dotted path)`` of all below ``node`` that holds nothing itself."""
    pairs = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    for key, value in pairs:
        if isinstance(value, (dict, list)):
            yield from leaves(value, f'{where}.{key}')
        else:
            yield node, key, value, f'{where}.{key}'
