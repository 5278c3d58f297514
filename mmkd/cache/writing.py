"""Write a teacher's outputs for each image of a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.dataset import pseudo_collate
from torch.utils.data import DataLoader, Subset

from ..errors import ConfigError, UserError
from .files import SHARD_IMAGES, CacheWriter
from .identity import checkpoint_identity, encode
from .pipeline import image_names

# Of a teacher's config: keys that locate the teacher or describe how a cache is read.
NOT_OPTIONS = ('config', 'checkpoint', 'classes', 'cache', 'min_visible', 'photometric', 'shard')


@dataclass(frozen=True)
class CacheSummary:
    """What a cache came to.

    Attributes:
        images: How many images it has.
        new: How many of them were added now.
        bytes_per_image: On disk, as estimated from the first one.
    """

    images: int
    new: int
    bytes_per_image: int


def write_cache(
    outputs: Any,
    config: dict[str, Any],
    dataset: Any,
    folder: str | Path,
    batch_size: int = 1,
    num_workers: int = 0,
    shard_images: int = SHARD_IMAGES,
    confirm: Callable[[int, int, bool], bool] | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> CacheSummary | None:
    """Write the cache of a data set, or go on where it was interrupted.

    Args:
        outputs: The teacher's outputs (:class:`mmkd.distillers.teacher_outputs.TeacherOutputs`).
        config: The teacher's config, as the distiller has it.
        dataset: The images, each as the teacher is to see it.
        folder: Where to.
        batch_size: Images the teacher sees at once; more than one are padded to the largest.
        num_workers: Processes that load images.
        shard_images: Images a file.
        confirm: Asked before anything is written: images to come, bytes of each, whether what is kept is
            large.
        progress: Wraps the batches.

    Returns:
        What was written, None where ``confirm`` refused.

    Raises:
        ConfigError: The folder holds another cache, or the data set is empty or has two images of one name.
    """
    names = image_names(dataset)
    if not names:
        raise ConfigError('the training data set has no images')
    numbers = dict(zip(names, range(len(names)), strict=True))
    if len(numbers) < len(names):
        twice = next(name for index, name in enumerate(names) if numbers[name] != index)
        raise ConfigError(
            f'the training data set has two images called {twice}; a cache identifies images by id and '
            f'file name'
        )
    first = outputs.extract_batch(pseudo_collate([dataset[0]]))
    size = sum(value.nbytes for fields in first.values() for value in fields.values())
    writer = CacheWriter(folder, cache_identity(outputs, config, names), shard_images)
    missing = [index for name, index in numbers.items() if name not in writer.done]
    large = any(content.is_large for content in outputs.contents)
    if confirm is not None and missing and not confirm(len(missing), size, large):
        return None
    loader = DataLoader(
        Subset(dataset, missing), batch_size, num_workers=num_workers, collate_fn=pseudo_collate
    )
    try:
        for raw in progress(loader):
            for name, fields in outputs.extract_batch(raw).items():
                writer.add(name, fields)
    except (KeyboardInterrupt, UserError, RuntimeError):  # an image that fails, or no memory left
        writer.flush()  # so that nothing is computed twice
        raise
    writer.finish()
    return CacheSummary(len(writer.done), len(missing), size)


def cache_identity(outputs: Any, config: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """What identifies a cache."""
    teacher = outputs.teacher
    options = {key: encode(value) for key, value in config.items() if key not in NOT_OPTIONS}
    digest = hashlib.sha256('\n'.join(sorted(names)).encode()).hexdigest()
    return dict(
        teacher=dict(
            model=encode(teacher.model_config),
            classes=list(teacher.classes) if teacher.classes else None,
            scale=teacher.scale,
            options=options,
            **({} if teacher.scope == 'mmdet' else dict(scope=teacher.scope)),
            **checkpoint_identity(config['checkpoint']),
        ),
        contents={content.kind: content.describe() for content in outputs.contents},
        data=dict(images=len(names), sha256=digest),
    )
