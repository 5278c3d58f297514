"""Change the data folder of a config."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.config import Config

from ..errors import ConfigError

DATA_SECTIONS = tuple(
    f'{mode}_{part}' for mode in ('train', 'val', 'test') for part in ('dataloader', 'evaluator')
)


def replace_data_root(cfg: Config, new: str) -> None:
    """Change the ``data_root`` of every data set and evaluator of a config, in place.

    ``data_root`` at the top of an MMDetection config is a plain variable. The data loaders have
    already used its value, so changing the variable alone has no effect on them.

    Args:
        cfg: A config with a top-level ``data_root``.
        new: The new folder, with or without a trailing slash.

    Raises:
        ConfigError: The config has no ``data_root``, or none of its data is in that folder.
    """
    old = cfg.get('data_root')
    if not isinstance(old, str) or not old:
        raise ConfigError(
            'data_root: this config has no top-level data_root to change; set it in each data loader: '
            f'--cfg-options train_dataloader.dataset.data_root={new}'
        )
    old_folder, new_folder = old.rstrip('/') + '/', str(new).rstrip('/') + '/'
    changed = 0
    # Collect all first: `test_dataloader = val_dataloader` may be one object, to be changed once.
    found = {
        (id(owner), key): (owner, key, value)
        for section in DATA_SECTIONS
        for owner, key, value, _ in iter_leaves(cfg.get(section), section)
        if isinstance(value, str) and (value + '/' == old_folder or value.startswith(old_folder))
    }
    for owner, key, value in found.values():
        owner[key] = new_folder + value[len(old_folder) :]
        changed += 1
    if not changed:
        raise ConfigError(
            f'data_root: {new} would change nothing, as no data set of this config is in {old}; '
            'set train_dataloader.dataset.data_root (and val_, test_) instead'
        )
    cfg.data_root = new_folder


def iter_leaves(node: Any, where: str) -> Iterator[tuple[Any, Any, Any, str]]:
    """Iterate over the values in nested dicts and lists that are no container themselves.

    Yields:
        ``(container, key, value, dotted path)``.
    """
    pairs = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    for key, value in pairs:
        if isinstance(value, (dict, list)):
            yield from iter_leaves(value, f'{where}.{key}')
        else:
            yield node, key, value, f'{where}.{key}'
