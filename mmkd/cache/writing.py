"""Write a cache: compute and store a teacher's outputs for each image of a data set."""

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

# Keys of a teacher's config that locate the teacher or configure the reading of a cache.
NOT_OPTIONS = ('config', 'checkpoint', 'classes', 'cache', 'min_visible', 'photometric', 'shard')


@dataclass(frozen=True)
class CacheSummary:
    """The result of writing a cache.

    Attributes:
        images: Number of images in the cache.
        new: Number of images that were added.
        bytes_per_image: Size on disk per image, estimated from the first image.
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
    """Write the cache of a data set, or continue an interrupted one.

    Args:
        outputs: The teacher's outputs (:class:`mmkd.distillers.teacher_outputs.TeacherOutputs`).
        config: The teacher's config in the distiller.
        dataset: The data set, with the pipeline for the teacher.
        folder: The folder of the cache.
        batch_size: Number of images per batch. The images of a batch are padded to the largest.
        num_workers: Number of processes that load images.
        shard_images: Number of images per file.
        confirm: Called before anything is written, with the number of images to add, the bytes per image,
            and whether the outputs are large. Returns whether to write.
        progress: Wraps the iterable of batches.

    Returns:
        A summary, or None if ``confirm`` returned False.

    Raises:
        ConfigError: The folder contains another cache, or the data set is empty or has two images with the
            same key.
    """
    names = image_names(dataset)
    if not names:
        raise ConfigError(
            'train_dataloader: the data set has no images; correct its annotation file'
        )
    numbers = dict(zip(names, range(len(names)), strict=True))
    if len(numbers) < len(names):
        twice = next(name for index, name in enumerate(names) if numbers[name] != index)
        raise ConfigError(
            f'train_dataloader: the data set has two images with id and file name {twice}, by which a cache '
            f'identifies images; remove one'
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
    except (
        KeyboardInterrupt,
        UserError,
        RuntimeError,
    ):  # for example a broken image, or out of memory
        writer.flush()  # the finished images need not be computed again
        raise
    writer.finish()
    return CacheSummary(len(writer.done), len(missing), size)


def cache_identity(outputs: Any, config: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Return the identity of a cache: teacher, contents and data set as JSON values."""
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
