"""The interface of the kinds of outputs that a cache can store and convert to another view of the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from mmdet.structures import SampleList
from torch import Tensor

from ..errors import ConfigError
from ..families import Family
from ..recorder import Source
from ..types import Detector
from .views import View, ViewTransform

#: A function that returns the recorded output of a source.
ReadOutput = Callable[[Source], Any]
# If a smaller share of an object is visible, a detector's output is unreliable: see docs/cache.md.
MIN_VISIBLE = 0.3


@dataclass
class Batch:
    """The views of a batch, and the stored outputs of its images.

    Args:
        fields: The stored tensors of each image, by name.
        transform: The transform from the stored views to the views of the batch.
        samples: The meta information of the batch.
        padded: Height and width of the batch with padding.
        old: The stored views, in which the teacher saw the images.
        device: The device of the results.
        min_visible: The share of a box's area that must be visible; otherwise the box is dropped.
        scale: Size of the teacher's images relative to the student's.
    """

    fields: Sequence[dict[str, Tensor]]
    transform: ViewTransform
    samples: SampleList
    padded: tuple[int, int]
    old: Sequence[View]
    device: torch.device
    min_visible: float
    scale: float = 1.0

    @property
    def scaled_transform(self) -> ViewTransform:
        """The transform in pixels of the teacher's images."""
        if self.scale == 1:
            return self.transform
        factors = (self.scale, self.scale)
        new = [View.from_sample(sample).scaled(factors) for sample in self.samples]
        return ViewTransform.between([view.scaled(factors) for view in self.old], new)

    @property
    def scaled_padded(self) -> tuple[int, int]:
        """Height and width of the teacher's images with padding."""
        height, width = (max(1, round(length * self.scale)) for length in self.padded)
        return (height, width)

    def stack(self, name: str) -> Tensor:
        """Stack a field that has the same shape for all images, shape (N, …), on the device."""
        return self._move(torch.stack([fields[name] for fields in self.fields]))

    def concatenate(self, name: str) -> Tensor:
        """Concatenate the rows of a field, one image after the other, on the device."""
        return self._move(torch.cat([fields[name] for fields in self.fields]))

    def _move(self, value: Tensor) -> Tensor:
        value = value.to(self.device, non_blocking=True)
        return value.float() if value.dtype == torch.float16 else value


@dataclass
class Restored:
    """The stored outputs of a batch, in the form of a teacher's forward pass.

    Args:
        values: Outputs by source, in the form in which the teacher's module returns them.
        shared: Shared inputs by name, as returned by :meth:`mmkd.families.Family.run`.
        stored_masks: For sources of which not all values are stored: one mask per map, shape (N, 1 or
            priors per position, H, W).
    """

    values: dict[Source, Any]
    shared: dict[str, Any]
    stored_masks: dict[Source, list[Tensor]]


class Content:
    """Base class of the kinds of stored outputs.

    Args:
        detector: The teacher. It has weights only when a cache is written.
        family: The family of the teacher.
        sources: The outputs to store.
        settings: Settings of the subclass, as JSON values.
    """

    #: The name of the kind in ``cache.json``.
    kind: ClassVar[str]
    #: Whether it needs so much disk space that the user is asked first.
    is_large: ClassVar[bool] = False

    def __init__(
        self, detector: Detector, family: Family, sources: Sequence[Source], **settings: Any
    ) -> None:
        self.detector, self.family, self.sources = detector, family, list(sources)
        self.settings = settings

    @classmethod
    def can_store(cls, source: Source, family: Family) -> bool:
        """Return whether this kind can store a source."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Return the sources and settings that a reader needs, as JSON values."""
        return dict(sources=[asdict(source) for source in self.sources], **self.settings)

    def lacks(self, needed: Content) -> str | None:
        """Name the outputs that losses need and this content lacks; None if it has all."""
        absent = [str(source) for source in needed.sources if source not in self.sources]
        return ', '.join(absent) or None

    def extract(
        self, read: ReadOutput, shared: dict[str, Any], image: int, view: View
    ) -> dict[str, Tensor]:
        """Return the tensors to store for an image, by name.

        Args:
            read: Returns the teacher's output of a source for the batch.
            shared: The inputs that the teacher's family shares.
            image: Index of the image in the batch.
            view: The view in which the teacher saw the image, in the student's pixels.
        """
        raise NotImplementedError

    def restore(self, batch: Batch) -> Restored:
        """Convert the stored tensors to outputs for the views of a batch."""
        raise NotImplementedError


def to_half(value: Tensor, what: Any) -> Tensor:
    """Convert a tensor to half precision; values beyond its range are clamped. ``what`` names it in messages.

    Raises:
        ConfigError: The tensor has NaN or infinite values.
    """
    if not torch.isfinite(value).all():
        raise ConfigError(
            f"the teacher's output {what} must be finite numbers, got NaN or infinity; its checkpoint is "
            f'damaged'
        )
    return value.clamp(-65504, 65504).to(torch.float16)
