"""A live teacher's outputs outside a training run: to store them, or to compare stored outputs with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..cache.contents import Content, ReadOutput
from ..cache.selection import NUM_PRIORS, contents_for
from ..cache.views import View, image_key
from ..recorder import Source
from ..teachers import Teacher
from .distiller import Distiller
from .step import TeacherPass


class TeacherOutputs:
    """Computes the outputs of a live teacher that losses read, in the form in which they are stored.

    Args:
        distiller: The distiller, with a live teacher: its config has no ``cache``.
        name: The name of the teacher.
        num_priors: Number of priors of a dense head to store per image.

    Raises:
        ConfigError: A loss reads an output that cannot be stored.
    """

    def __init__(self, distiller: Distiller, name: str, num_priors: int = NUM_PRIORS) -> None:
        distiller.prepare()
        self.teacher: Teacher = distiller.teachers[name]
        self.name = name
        #: The losses that use this teacher.
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

    def extract_batch(self, raw: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
        """Compute the tensors to store for a batch.

        Args:
            raw: A batch from a test data loader.

        Returns:
            For each image, by its key: tensors by name.
        """
        data = self.teacher.detector.data_preprocessor(raw, False)
        kept = {}
        with self.run(data) as (read, shared):
            for index, sample in enumerate(data['data_samples']):
                view = View.from_sample(sample)
                size = sample.metainfo.get('ori_shape', sample.img_shape)[:2]
                fields = {'view': view.values(), 'file': torch.tensor(size)}
                for content in self.contents:
                    fields.update(content.extract(read, shared, index, view))
                kept[image_key(sample)] = fields
        return kept

    @contextmanager
    def run(self, data: dict[str, Any]) -> Iterator[tuple[ReadOutput, dict[str, Any]]]:
        """Run the teacher in a context; yields a function that returns the output of a source.

        The context also yields the inputs that the family shares, by name.

        Args:
            data: A batch from the teacher's preprocessor.
        """
        inputs, samples = data['inputs'], data['data_samples']
        own = self.teacher.detector.data_preprocessor
        try:
            self._pass.run_teacher(inputs, samples, own, self._pass.recorder)
            yield self._read, dict(self._pass.shared, padded=tuple(inputs.shape[-2:]))
        finally:
            self._pass.clear()

    def _read(self, source: Source) -> Any:
        return self._pass.recorder_of(source)[source]
