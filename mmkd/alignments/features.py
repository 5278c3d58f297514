"""Feature maps of student and teacher on the same images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.registry import TASK_UTILS
from mmdet.structures.bbox import get_box_tensor
from torch import Tensor

from ..errors import ConfigError
from .base import Alignment, Pair, Step, require_same_shape
from .padding import both_masks, map_geometry, valid_positions


@TASK_UTILS.register_module()
class FeatureAlignment(Alignment):
    """Pairs feature maps level by level, by their height and width.

    The default alignment. A single map and a tuple of maps (a neck's output) are both understood.
    Levels that only one model has are left out: of P2 to P6 and P3 to P7, P3 to P6 are compared.

    A teacher that sees larger images (``teacher.scale``) has maps of the student's sizes at other
    strides: with twice the size, its P4 shows the same positions as the student's P3. Where no size
    agrees, the teacher's maps nearest in size are resized.

    Positions on the padding of a batch do not count, so that the loss of an image does not depend on
    the images beside it; nor do positions that a cached teacher has not stored. The published code of
    CWD, PKD, FGD and MGD takes means and sums over the padded maps: ``count_padding=True``.

    Args:
        same_channels: Whether maps must have the same number of channels. A loss that does not
            compare them channel by channel (``AttentionTransfer``, ``RKDDistance``, ``RKDAngle``)
            needs no connector with False.
        levels: Compare only these of the common levels, counted from 0. None for all.
        count_padding: Whether positions on padding count.
    """

    def __init__(
        self,
        same_channels: bool = True,
        levels: Sequence[int] | None = None,
        count_padding: bool = False,
    ) -> None:
        self.same_channels = same_channels
        self.levels = levels
        self.count_padding = count_padding

    def __call__(self, student: Any, teacher: Any, step: Step) -> list[Pair]:
        ours = levels_of(student, 'student')
        pairs = [
            Pair(level, other)
            for level, other in common_levels(
                ours,
                levels_of(teacher, 'teacher'),
                None if self.connected else 'ConvConnector',
                same_channels=self.same_channels,
                scale=step.scale,
            )
        ]
        stored = step.stored_masks(self.teacher)
        if stored is not None:  # masks are resized as the maps are
            stored = [mask.float() for mask in stored]
            masks = common_levels(ours, stored, same_channels=False, scale=step.scale)
            for pair, (_, mask) in zip(pairs, masks, strict=True):
                pair.mask = mask[:, 0] > 0.5
        if not self.count_padding:
            for pair in pairs:
                pair.mask = both_masks(pair.mask, self._valid(pair.student, step))
        if self.levels is None:
            return pairs
        if not self.levels or not all(0 <= index < len(pairs) for index in self.levels):
            raise ConfigError(
                f'align.levels: must be indices of the {len(pairs)} common levels, 0 to '
                f'{len(pairs) - 1}, got {list(self.levels)}'
            )
        return [pairs[index] for index in self.levels]

    def _valid(self, level: Tensor, step: Step) -> Tensor | None:
        """The positions that show the images, shape (N, H, W); None: all, or no maps of whole images."""
        of_proposals = self.student is not None and self.student.module.startswith('roi_head')
        if of_proposals or level.dim() != 4 or len(level) != len(step.data_samples):
            return None
        return valid_positions(step.data_samples, tuple(level.shape[2:]), level.device)


@TASK_UTILS.register_module()
class ForegroundFeatureAlignment(FeatureAlignment):
    """The same, and where the labels have objects, for :class:`mmkd.losses.FGD`.

    ``Pair.target`` is, per position, one over the number of positions of the smallest box that covers it
    and 0 in the background, shape (N, H, W). A box covers the positions from the floor to the ceiling of
    its edges, both included, as in the code published with FGD, as far as the image reaches. That code
    scales boxes as if a map showed the image without its padding; here they are scaled by the stride.
    """

    target = 'foreground'

    def __call__(self, student: Any, teacher: Any, step: Step) -> list[Pair]:
        pairs = super().__call__(student, teacher, step)
        for pair in pairs:
            pair.target = foreground(step, tuple(pair.teacher.shape[2:]), pair.teacher.device)
        return pairs


def foreground(step: Step, size: Sequence[int], device: torch.device) -> Tensor:
    """One over the area of the smallest labelled box on each position of a map, 0 where there is none.

    Args:
        step: The training step.
        size: Height and width of the map.
        device: Where to compute it.

    Returns:
        Shape (N, height, width).
    """
    boxes, image = labelled_boxes(step, device)
    geometry = [map_geometry(sample, size) for sample in step.data_samples]
    # Without waiting for the device, as a copy within torch.tensor would.
    stride, count = (
        torch.tensor(each).flip(1).to(device, non_blocking=True)
        for each in zip(*geometry, strict=True)
    )
    edges = boxes / stride[image].repeat(1, 2)
    start, end = edges[:, :2].floor().clamp(min=0), edges[:, 2:].ceil()
    end = torch.minimum(end, count[image] - 1.0)
    inside = [
        (position >= start[:, axis, None]) & (position <= end[:, axis, None])
        for axis, position in enumerate(
            torch.arange(length, device=device) for length in size[::-1]
        )
    ]
    area = (end - start + 1).clamp(min=1).prod(1)
    share = (inside[1][:, :, None] & inside[0][:, None, :]) / area[:, None, None]
    result = share.new_zeros(len(step.data_samples), *size)
    return result.scatter_reduce_(0, image[:, None, None].expand_as(share), share, 'amax')


def labelled_boxes(step: Step, device: torch.device) -> tuple[Tensor, Tensor]:
    """The objects of all images: corners in pixels, shape (G, 4), and their images, shape (G,)."""
    boxes = [get_box_tensor(sample.gt_instances.bboxes) for sample in step.data_samples]
    image = [torch.full((len(each),), index) for index, each in enumerate(boxes)]
    return torch.cat(boxes).to(device), torch.cat(image).to(device)


def common_levels(
    ours: list[Tensor],
    theirs: list[Tensor],
    connector: str | None = 'ConvConnector',
    same_channels: bool = True,
    scale: tuple[float, float] = (1.0, 1.0),
) -> list[tuple[Tensor, Tensor]]:
    """Maps of student and teacher of the same size, in order.

    Args:
        ours: The student's maps, shape (N, C, H, W) each.
        theirs: The teacher's.
        connector: The connector that a message proposes where channels differ; None where ``ours`` are the
            outputs of one.
        same_channels: Whether they must not.
        scale: How much larger the teacher's images are, in width and height. Where no map has the same
            size for that reason, those of the teacher that differ by less than half an octave, or the only
            one there is, are resized to the student's.

    Raises:
        ConfigError: No level is common, or one differs in shape.
    """
    # By other factors than powers of two, sizes agree by chance.
    octaves = [math.log2(factor) for factor in scale]
    pairs = list(_of_same_size(ours, theirs)) if octaves == [round(o) for o in octaves] else []
    if not pairs and scale != (1.0, 1.0):
        pairs = list(_of_similar_size(ours, theirs))
    if not pairs:
        raise ConfigError(
            f'no common level: the student has maps of {_sizes(ours)}, the teacher of {_sizes(theirs)}'
        )
    for index, (level, other) in enumerate(pairs):
        hint = ''
        if level.dim() > 1 and other.dim() > 1 and level.shape[1] != other.shape[1]:
            hint = f'; channels differ: set out_channels={other.shape[1]} of its connector'
            if connector is not None:
                hint = (
                    f"; channels differ: add connector=dict(type='{connector}', "
                    f'in_channels={level.shape[1]}, out_channels={other.shape[1]})'
                )
        if same_channels:
            require_same_shape(level, other, f'level {index}', hint)
        else:
            require_same_shape(level[:, :0], other[:, :0], f'level {index}')
    return pairs


def _of_same_size(ours: list[Tensor], theirs: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    start = 0  # levels stay in order: the smallest maps of small images may have the same size
    for level in ours:
        for index in range(start, len(theirs)):
            if theirs[index].shape[2:] == level.shape[2:]:
                yield level, theirs[index]
                start = index + 1
                break


def _of_similar_size(ours: list[Tensor], theirs: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    # Levels are an octave apart, so that each has but one counterpart; a single map has no choice.
    reach = 0.5 if len(ours) > 1 or len(theirs) > 1 else math.inf
    for level in ours:
        size = level.shape[2:]
        octaves = [math.log2(other.shape[2:].numel() / size.numel()) / 2 for other in theirs]
        nearest = min(range(len(theirs)), key=lambda index: abs(octaves[index]))
        if abs(octaves[nearest]) <= reach:
            shrinks = octaves[nearest] > 0
            other = theirs[nearest]
            yield level, F.interpolate(other, size, mode='bilinear', antialias=shrinks)


def levels_of(value: Any, owner: str) -> list[Tensor]:
    """A recorded output as a list of maps.

    Raises:
        ConfigError: It is something else.
    """
    levels = list(value) if isinstance(value, (list, tuple)) else [value]
    if not levels or not all(isinstance(level, Tensor) for level in levels):
        kinds = sorted({type(level).__name__ for level in levels})
        raise ConfigError(
            f'{owner}: the recorded output must be feature maps, got {kinds}; record a module that returns '
            f'tensors, or select one with index='
        )
    return levels


def _sizes(levels: list[Tensor]) -> str:
    return ', '.join('x'.join(map(str, level.shape[2:])) for level in levels)
