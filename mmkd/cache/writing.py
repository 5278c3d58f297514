"""Write what a teacher says of each image of a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import pseudo_collate
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from ..distillers import Distiller
from ..distillers.step_recorders import TeacherPass
from ..distillers.teacher import Teacher
from ..errors import ConfigError
from ..recorder import Source
from .contents import Content, Read
from .files import SHARD_IMAGES, CacheWriter
from .identity import checkpoint_identity, encode
from .pipeline import image_names
from .selection import NUM_PRIORS, contents_for
from .views import View, view_key

# Of a teacher's config: what is no option of the teacher, but says where it is or how a cache is read.
NOT_OPTIONS = ('config', 'checkpoint', 'classes', 'cache', 'min_visible', 'photometric', 'shard')


@dataclass(frozen=True)
class Written:
    """What a cache came to.

    Attributes:
        images: How many images it has.
        new: How many of them were added now.
        bytes_an_image: On disk, as estimated from the first one.
    """

    images: int
    new: int
    bytes_an_image: int


class Keeper:
    """A live teacher whose answers are kept.

    Args:
        distiller: The distillation, with the teacher live: its config has no ``cache``.
        name: The teacher's name.
        num_priors: How many priors of a dense head are kept.

    Raises:
        ConfigError: A loss reads what cannot be kept.
    """

    def __init__(self, distiller: Distiller, name: str, num_priors: int = NUM_PRIORS) -> None:
        distiller.prepare()
        self.teacher: Teacher = distiller.teachers[name]
        self.name = name
        #: The losses that read it, and which class is which.
        self.entries = entries = [e for e in distiller.entries.values() if name in e.aligns]
        options = dict(self.teacher.options, cached=True)
        for entry in entries:
            entry.check(distiller.student, self.teacher.detector, options, name)
        self.class_map = class_map = distiller.class_maps.get(name)
        self.contents: list[Content] = contents_for(
            entries,
            name,
            self.teacher.detector,
            self.teacher.family,
            class_map,
            self.teacher.scale,
            num_priors,
        )
        self._pass = TeacherPass(name, self.teacher, entries, distiller.student, class_map)

    def keep(self, raw: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
        """What is written of a batch.

        Args:
            raw: A batch as a test data loader gives it.

        Returns:
            By image, tensors by name.
        """
        data = self.teacher.detector.data_preprocessor(raw, False)
        kept = {}
        with self.asked(data) as (read, shared):
            for index, sample in enumerate(data['data_samples']):
                view = View.of(sample)
                size = sample.metainfo.get('ori_shape', sample.img_shape)[:2]
                fields = {'view': view.numbers(), 'file': torch.tensor(size)}
                for content in self.contents:
                    fields.update(content.keep(read, shared, index, view))
                kept[view_key(sample)] = fields
        return kept

    @contextmanager
    def asked(self, data: dict[str, Any]) -> Iterator[tuple[Read, dict[str, Any]]]:
        """A pass of the teacher: gives what was recorded of each source, and what its family shares.

        Args:
            data: A batch as the teacher's preprocessor gives it.
        """
        inputs, samples = data['inputs'], data['data_samples']
        own = self.teacher.detector.data_preprocessor
        try:
            self._pass.run_teacher(inputs, samples, own, self._pass.recorder)
            yield self._read, dict(self._pass.shared, padded=tuple(inputs.shape[-2:]))
        finally:
            self._pass.clear()

    def _read(self, source: Source) -> Any:
        return self._pass.record_of(source)[source]


def write_cache(
    keeper: Keeper,
    config: dict[str, Any],
    dataset: Any,
    folder: str | Path,
    batch_size: int = 1,
    num_workers: int = 0,
    shard_images: int = SHARD_IMAGES,
    confirm: Callable[[int, int, bool], bool] | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Written | None:
    """Write the cache of a data set, or go on where it was interrupted.

    Args:
        keeper: The teacher.
        config: Its config, as the distiller has it.
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
            f'the training data set has two images called {twice}; a cache tells images by id and file name'
        )
    first = keeper.keep(pseudo_collate([dataset[0]]))
    size = sum(value.nbytes for fields in first.values() for value in fields.values())
    writer = CacheWriter(folder, identity_of(keeper, config, names), shard_images)
    missing = [index for name, index in numbers.items() if name not in writer.done]
    large = any(content.is_large for content in keeper.contents)
    if confirm is not None and missing and not confirm(len(missing), size, large):
        return None
    loader = DataLoader(
        Subset(dataset, missing), batch_size, num_workers=num_workers, collate_fn=pseudo_collate
    )
    try:
        for raw in progress(loader):
            for name, fields in keeper.keep(raw).items():
                writer.add(name, fields)
    except KeyboardInterrupt:
        writer.flush()  # so that nothing is asked twice
        raise
    writer.finish()
    return Written(len(writer.done), len(missing), size)


def identity_of(keeper: Keeper, config: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """What tells a cache from others."""
    from ..distillers.teacher import load_config

    teacher = keeper.teacher
    options = {key: encode(value) for key, value in config.items() if key not in NOT_OPTIONS}
    digest = hashlib.sha256('\n'.join(sorted(names)).encode()).hexdigest()
    return dict(
        teacher=dict(
            model=encode(load_config(config['config']).model),
            classes=list(teacher.classes) if teacher.classes else None,
            scale=teacher.scale,
            options=options,
            **checkpoint_identity(config['checkpoint']),
        ),
        contents={content.kind: content.describe() for content in keeper.contents},
        data=dict(images=len(names), sha256=digest),
    )
