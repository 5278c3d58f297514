"""A teacher whose answers were written to disk before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from mmdet.structures import SampleList
from mmengine.config import ConfigDict
from mmengine.model import BaseDataPreprocessor
from torch import Tensor, nn

from ..alignments import ClassMap
from ..building import build_detector
from ..cache.contents import MIN_VISIBLE, Batch, Content
from ..cache.files import CacheReader
from ..cache.identity import check_checkpoint, decode, encode
from ..cache.pipeline import image_names, record_views, refuse_batch_augments
from ..cache.selection import contents_for, restored_contents
from ..cache.views import View, ViewTransform, image_key
from ..errors import ConfigError, PathError
from ..families import family_of
from ..recorder import Recorder, Source
from ..types import Detector
from .base import Teacher
from .config import load_config


class CachedTeacher(Teacher):
    """Reads the stored outputs of a :class:`mmkd.teachers.LiveTeacher`.

    Of the detector only its structure is there, so that alignments know its heads; its weights take no
    memory. The stored outputs are converted to the view of the image that a batch shows
    (:mod:`mmkd.cache.contents`).

    Args:
        cache: Folder that ``tools/cache_teacher.py`` wrote.
        config, checkpoint: As a :class:`Teacher` has them. They are not needed; where they are given, the
            cache must be theirs.
        classes: Likewise.
        name: How messages call its config.
        min_visible: A box less of whose area is left in a view is dropped.
        photometric: Whether the student's images may be changed in colour and the like. The stored
            outputs are those of the unchanged image.
        options: Those of :class:`Teacher`; they must be as when the cache was written.

    Raises:
        MissingFileError, CheckpointError: There is no cache, or it is damaged.
        ConfigError: It is another teacher's, or a value does not hold.
    """

    def __init__(
        self,
        cache: str,
        config: str | dict | None = None,
        checkpoint: str | None = None,
        classes: Sequence[str] | None = None,
        name: str = 'teacher',
        min_visible: float = MIN_VISIBLE,
        photometric: bool = False,
        **options: Any,
    ) -> None:
        if not 0 <= min_visible <= 1:
            raise ConfigError(f'{name}.min_visible: must be in [0, 1], got {min_visible}')
        self.cache, self.name = cache, name
        self.min_visible, self.photometric = min_visible, photometric
        self.reader = CacheReader(cache)
        stored = self.reader.identity['teacher']
        options.pop('shard', None)  # there are no weights to share out
        for option, value in options.items():
            kept = stored['options'].get(option, TEACHER_OPTIONS.get(option))
            if encode(value) != kept:
                raise ConfigError(
                    f'{name}.{option}={value!r}, but the cache {cache} was written with {kept!r}; '
                    f'leave the option '
                    f'out or write the cache again'
                )
        if config is not None and encode(load_config(config, name).model) != stored['model']:
            raise ConfigError(
                f'{name}.cache={cache} was written by another detector than {name}.config says; '
                f'write it again, or '
                f'leave {name}.config out'
            )
        if checkpoint is not None:
            check_checkpoint(checkpoint, stored, name, cache)
        if classes and list(classes) != stored['classes']:
            raise ConfigError(
                f'{name}.classes are not those of the cache {cache} ({", ".join(stored["classes"] or [])})'
            )
        self.classes = tuple(stored['classes']) if stored['classes'] else None
        self.checkpoint = stored['checkpoint']
        self.scale = stored['scale']
        model = ConfigDict(decode(stored['model']))
        detector = build_detector(model, f'{name}.cache={cache}', stored.get('scope', 'mmdet'))
        self.detector = _without_weights(detector.eval().requires_grad_(False))
        self.family = family_of(self.detector, **_family_options(stored['options']))
        self._contents: list[Content] = restored_contents(
            self.reader.identity['contents'], self.detector, self.family
        )
        #: What it says of the present batch, by source.
        self.outputs: dict[Source, Any] = {}

    @property
    def options(self) -> dict[str, Any]:
        return dict(super().options, cached=True)

    @property
    def origin(self) -> str:
        return f'read from {self.cache}'

    def prepare_data(self, dataset: Any, preprocessor: BaseDataPreprocessor | None = None) -> None:
        """Make the samples of a data set record their views.

        Args:
            dataset: The training data, as it is used.
            preprocessor: The student's.

        Raises:
            ConfigError: Pipeline or preprocessor change images in ways that boxes cannot follow, or an
                image is not in the cache.
        """
        refuse_batch_augments(preprocessor, self.name)
        record_views(dataset, self.name, self.photometric)
        absent = [name for name in image_names(dataset) if name not in self.reader]
        if absent:
            raise ConfigError(
                f'{self.name}.cache={self.cache} has nothing of {len(absent)} images of '
                f'train_dataloader, among them '
                f'{absent[0]}; write it for these data'
            )

    def require(self, entries: Iterable[Any], name: str, class_map: ClassMap | None) -> None:
        needed = contents_for(entries, name, self.detector, self.family, class_map, self.scale)
        have = {content.kind: content for content in self._contents}
        for content in needed:
            lacks = content.kind if content.kind not in have else have[content.kind].lacks(content)
            if lacks:
                raise ConfigError(
                    f'{self.name}.cache={self.cache} does not hold {lacks}, which the losses read; '
                    f'write it again '
                    f'with this config'
                )
        self._contents = [have[content.kind] for content in needed]

    def recorder(self, sources: Sequence[Source]) -> StoredOutputs:
        Recorder(self.detector, sources, owner='teacher')  # knows which modules there are
        return StoredOutputs(self)

    @torch.no_grad()
    def run(
        self,
        inputs: Tensor,
        data_samples: SampleList,
        preprocessor: BaseDataPreprocessor,
        parts: set[str],
        student: Recorder,
    ) -> dict[str, Any]:
        """Read the stored outputs for the images; see :meth:`Teacher.run`.

        Shares ``stored_masks`` besides: by source, which of its values are stored
        (:class:`mmkd.cache.contents.Restored`).

        Raises:
            ConfigError: An image is not in the cache, or was changed in a way that boxes cannot follow.
        """
        padded = (inputs.shape[-2], inputs.shape[-1])
        batch = self._batch(data_samples, padded, inputs.device)
        _move_buffers(self.detector, inputs.device)
        shared: dict[str, Any] = dict(stored_masks={}, scale=self._factors(padded))
        self.outputs = {}
        for content in self._contents:
            restored = content.restore(batch)
            self.outputs.update(restored.values)
            shared['stored_masks'].update(restored.stored_masks)
            shared.update(restored.shared)
        return shared

    def run_joint_parts(self, recorded: Any, shared: dict[str, Any], parts: set[str]) -> None:
        """Nothing: outputs for its own proposals are read with the rest."""

    def _factors(self, padded: tuple[int, int]) -> tuple[float, float]:
        height, width = (max(1, round(length * self.scale)) / length for length in padded)
        return (width, height)

    def _batch(self, samples: SampleList, padded: tuple[int, int], device: torch.device) -> Batch:
        fields = [self.reader[image_key(sample)] for sample in samples]
        old = [View.from_values(each['view'].tolist()) for each in fields]
        for sample, each in zip(samples, fields, strict=True):
            size = list(sample.metainfo.get('ori_shape', ())[:2])
            if size and size != each['file'].tolist():
                raise ConfigError(
                    f'image {image_key(sample)} has {size[0]} x {size[1]} pixels, but where the '
                    f'cache {self.cache} was '
                    f'written {each["file"][0]} x {each["file"][1]}: it is of another data set'
                )
        transform = ViewTransform.between(old, [View.from_sample(sample) for sample in samples])
        return Batch(fields, transform, samples, padded, old, device, self.min_visible, self.scale)


class StoredOutputs(Recorder):
    """What a :class:`CachedTeacher` says of the present batch, where a recorder would stand."""

    def __init__(self, teacher: CachedTeacher) -> None:
        super().__init__(teacher.detector, (), owner='teacher')
        self.teacher = teacher

    def __enter__(self) -> StoredOutputs:
        return self

    def __exit__(self, *_: Any) -> None:
        return None

    def __getitem__(self, source: Source) -> Any:
        if source not in self.teacher.outputs:
            raise PathError(f'the cache {self.teacher.cache} does not hold {source}')
        return self.teacher.outputs[source]

    def __contains__(self, source: Source) -> bool:
        return source in self.teacher.outputs

    def clear(self) -> None:
        """Drop the outputs of the batch."""
        self.teacher.outputs = {}


def _without_weights(detector: Detector) -> nn.Module:
    """The same with parameters that have a shape and no memory; buffers, constants of heads among
    them, stay."""
    for module in detector.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.to('meta'), requires_grad=False)
    return detector


def _move_buffers(detector: Detector, device: torch.device) -> None:
    for module in detector.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.device != device:
                module._buffers[name] = buffer.to(device)


def _family_options(options: dict[str, Any]) -> dict[str, Any]:
    """Those of a teacher's options that are for its family."""
    return {key: decode(value) for key, value in options.items() if key not in TEACHER_OPTIONS}


# Options of earlier releases: memory format and compilation of the teacher. Caches may name them.
REMOVED_OPTIONS = ('channels_last', 'compile')
# What a LiveTeacher takes beside the options of its family, and the defaults.
TEACHER_OPTIONS = dict(scale=1.0, amp=None, **dict.fromkeys(REMOVED_OPTIONS, False))
