"""What can be kept of a teacher's outputs, and how it is converted to another view of the image."""

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

#: Gives what was recorded of a source in a pass.
ReadOutput = Callable[[Source], Any]
# Of an object less of which is in view, a detector's output is unreliable: see docs/cache.md.
MIN_VISIBLE = 0.3


@dataclass
class Batch:
    """The views of a batch, and what a cache has of its images.

    Args:
        fields: Of each image, tensors by name.
        transform: From the views in which the teacher saw the images to those of the batch.
        samples: The batch's meta information.
        padded: Height and width of the batch with padding.
        old: The views in which the teacher saw them.
        device: Where results go.
        min_visible: The share of a box that must be in view, or it is dropped.
        scale: How much larger the images are that the teacher sees.
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
        """The transform in pixels of the images that the teacher sees."""
        if self.scale == 1:
            return self.transform
        factors = (self.scale, self.scale)
        new = [View.from_sample(sample).scaled(factors) for sample in self.samples]
        return ViewTransform.between([view.scaled(factors) for view in self.old], new)

    @property
    def scaled_padded(self) -> tuple[int, int]:
        """Height and width with padding of the images that the teacher sees."""
        height, width = (max(1, round(length * self.scale)) for length in self.padded)
        return (height, width)

    def stack(self, name: str) -> Tensor:
        """A field that has the same shape for all images, shape (N, …), on the device."""
        return self._move(torch.stack([fields[name] for fields in self.fields]))

    def concatenate(self, name: str) -> Tensor:
        """Rows of all images, one image after the other, on the device."""
        return self._move(torch.cat([fields[name] for fields in self.fields]))

    def _move(self, value: Tensor) -> Tensor:
        value = value.to(self.device, non_blocking=True)
        return value.float() if value.dtype == torch.float16 else value


@dataclass
class Restored:
    """What stands in for a teacher's pass.

    Args:
        values: By source, as the teacher's module gives it.
        shared: By name, as :meth:`mmkd.families.Family.run` gives it.
        stored_masks: By source, which of its values are stored, where not
            all of them: a mask for each map, shape (N, 1 or priors per position, H, W).
    """

    values: dict[Source, Any]
    shared: dict[str, Any]
    stored_masks: dict[Source, list[Tensor]]


class Content:
    """One kind of output, chosen by the losses that read it.

    Args:
        detector: The teacher, whose weights are only there when a cache is written.
        family: Its family.
        sources: What is kept of it.
        settings: Settings of the subclass, as JSON holds them.
    """

    kind: ClassVar[str]
    #: Whether it takes so much room that the user is asked.
    is_large: ClassVar[bool] = False

    def __init__(
        self, detector: Detector, family: Family, sources: Sequence[Source], **settings: Any
    ) -> None:
        self.detector, self.family, self.sources = detector, family, list(sources)
        self.settings = settings

    @classmethod
    def can_store(cls, source: Source, family: Family) -> bool:
        """Whether this kind can keep a source."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """What a reader needs, as JSON holds it."""
        return dict(sources=[asdict(source) for source in self.sources], **self.settings)

    def lacks(self, needed: Content) -> str | None:
        """What losses need that this one does not have, in words; None where it has all."""
        absent = [str(source) for source in needed.sources if source not in self.sources]
        return ', '.join(absent) or None

    def extract(
        self, read: ReadOutput, shared: dict[str, Any], image: int, view: View
    ) -> dict[str, Tensor]:
        """What is written of an image.

        Args:
            read: What the teacher's modules gave for the batch.
            shared: What its family shares.
            image: Its index in the batch.
            view: How the teacher saw it, in pixels of the student.
        """
        raise NotImplementedError

    def restore(self, batch: Batch) -> Restored:
        """What the teacher would give for the views of a batch."""
        raise NotImplementedError


def to_half(value: Tensor, what: Any) -> Tensor:
    """In half precision, without infinities.

    Raises:
        ConfigError: The teacher gave no finite numbers.
    """
    if not torch.isfinite(value).all():
        raise ConfigError(f'the teacher gives no finite numbers at {what}')
    return value.clamp(-65504, 65504).to(torch.float16)
