"""A teacher that reads stored outputs from disk."""

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

    The detector is built without weights; alignments read only the settings of its heads. The stored
    outputs are converted to the view of the image in each batch (:mod:`mmkd.cache.contents`).

    Args:
        cache: A folder written by ``tools/cache_teacher.py``.
        config: See :class:`LiveTeacher`. Optional. If given, the cache must have been written with it.
        checkpoint: Likewise.
        classes: Class names. If given, they must be those of the cache.
        name: The config key of the teacher in messages.
        min_visible: A box is dropped if a smaller share of its area is visible in a view.
        photometric: Whether the training pipeline may change the colours of images. The stored outputs
            are always those of the unchanged image.
        **options: Options of :class:`LiveTeacher`. They must be those the cache was written with.

    Raises:
        MissingFileError, CheckpointError: The cache does not exist or is damaged.
        ConfigError: The cache belongs to another teacher, or a value is invalid.

    Examples:
        The config of a distillation names the folder. Nothing is read before training starts.

        >>> from mmengine.config import Config
        >>> from mmkd.teachers import DeclaredTeachers
        >>> text = "model = dict(teacher=dict(cache='work_dirs/cache/retinanet', photometric=True))"
        >>> model = Config.fromstring(text, '.py').model
        >>> teachers = DeclaredTeachers(model.teacher, None, {'teacher': 'losses.loss_kd'})
        >>> teachers.is_cached('teacher'), model.teacher.photometric
        (True, True)
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
        options.pop('shard', None)  # no weights to shard
        for option, value in options.items():
            written = stored['options'].get(option, TEACHER_OPTIONS.get(option))
            if encode(value) != written:
                raise ConfigError(
                    f'{name}.{option}: must be {written!r}, with which the cache {cache} was written, got '
                    f'{value!r}; remove the option, or write the cache again'
                )
        if config is not None and encode(load_config(config, name).model) != stored['model']:
            raise ConfigError(
                f'{name}.config: differs from the config with which the cache {cache} was written; write the '
                f'cache again, or remove {name}.config'
            )
        if checkpoint is not None:
            check_checkpoint(checkpoint, stored, name, cache)
        if classes and list(classes) != stored['classes']:
            raise ConfigError(
                f'{name}.classes: must be those of the cache {cache}, '
                f'{", ".join(stored["classes"] or [])}; remove {name}.classes, or write the cache again'
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
        #: The outputs for the current batch, by source.
        self.outputs: dict[Source, Any] = {}

    @property
    def options(self) -> dict[str, Any]:
        """The options of :class:`Teacher`, and ``cached=True``."""
        return dict(super().options, cached=True)

    @property
    def origin(self) -> str:
        """The folder of the cache, for the log."""
        return f'read from {self.cache}'

    def prepare_data(self, dataset: Any, preprocessor: BaseDataPreprocessor | None = None) -> None:
        """Make the samples of a data set record their views, and check that the cache has all images.

        Args:
            dataset: The data set of the training run.
            preprocessor: The student's data preprocessor.

        Raises:
            ConfigError: The pipeline or preprocessor changes images in ways that stored outputs cannot
                follow, or an image is not in the cache.
        """
        refuse_batch_augments(preprocessor, self.name)
        record_views(dataset, self.name, self.photometric)
        absent = [name for name in image_names(dataset) if name not in self.reader]
        if absent:
            raise ConfigError(
                f'{self.name}.cache: {self.cache} lacks {len(absent)} images of train_dataloader, such as '
                f'{absent[0]}; write the cache for this data set'
            )

    def require(self, entries: Iterable[Any], name: str, class_map: ClassMap | None) -> None:
        """Check that the cache has the outputs that losses read; see :meth:`Teacher.require`."""
        needed = contents_for(entries, name, self.detector, self.family, class_map, self.scale)
        have = {content.kind: content for content in self._contents}
        for content in needed:
            lacks = content.kind if content.kind not in have else have[content.kind].lacks(content)
            if lacks:
                raise ConfigError(
                    f'{self.name}.cache: {self.cache} does not contain {lacks}, which the losses read; '
                    f'write the cache again with this config'
                )
        self._contents = [have[content.kind] for content in needed]

    def recorder(self, sources: Sequence[Source]) -> StoredOutputs:
        """Return the stored outputs as a recorder; see :meth:`Teacher.recorder`."""
        Recorder(
            self.detector, sources, owner='teacher'
        )  # raises an error if a module does not exist
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
        """Read the stored outputs of the batch; see :meth:`Teacher.run`.

        The result also has ``stored_masks``: by source, which values are stored
        (:class:`mmkd.cache.contents.Restored`).

        Raises:
            ConfigError: An image is not in the cache, or was changed in a way that stored outputs cannot
                follow.
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
        """Do nothing: :meth:`run` has read the outputs for the teacher's proposals."""

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
                    f'{self.name}.cache: {self.cache} was written for another data set: image '
                    f'{image_key(sample)} had {each["file"][0]} x {each["file"][1]} pixels (height x '
                    f'width) and now has {size[0]} x {size[1]}; write the cache again'
                )
        transform = ViewTransform.between(old, [View.from_sample(sample) for sample in samples])
        return Batch(fields, transform, samples, padded, old, device, self.min_visible, self.scale)


class StoredOutputs(Recorder):
    """The outputs of a :class:`CachedTeacher` for the current batch, with the interface of a recorder."""

    def __init__(self, teacher: CachedTeacher) -> None:
        super().__init__(teacher.detector, (), owner='teacher')
        self.teacher = teacher

    def __enter__(self) -> StoredOutputs:
        return self

    def __exit__(self, *_: Any) -> None:
        return None

    def __getitem__(self, source: Source) -> Any:
        if source not in self.teacher.outputs:
            raise PathError(f'the cache {self.teacher.cache} does not contain {source}')
        return self.teacher.outputs[source]

    def __contains__(self, source: Source) -> bool:
        return source in self.teacher.outputs

    def clear(self) -> None:
        """Drop the outputs of the batch."""
        self.teacher.outputs = {}


def _without_weights(detector: Detector) -> nn.Module:
    """Move the parameters to the meta device: they keep their shapes and take no memory.

    Buffers, such as constants of heads, stay.
    """
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
    """The options of a teacher that belong to its family."""
    return {key: decode(value) for key, value in options.items() if key not in TEACHER_OPTIONS}


# Options of earlier releases: memory format and compilation of the teacher. Old caches may contain them.
REMOVED_OPTIONS = ('channels_last', 'compile')
# Options of LiveTeacher that do not belong to the family, with their defaults.
TEACHER_OPTIONS = dict(scale=1.0, amp=None, **dict.fromkeys(REMOVED_OPTIONS, False))
