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


@TASK_UTILS.register_module()
class FeatureAlignment(Alignment):
    """Pairs feature maps level by level, by their height and width.

    The default alignment. A single map and a tuple of maps (a neck's output) are both understood.
    Levels that only one side has are left out: of P2 to P6 and P3 to P7, P3 to P6 are compared.

    A teacher that sees larger images (``teacher.scale``) has maps of the student's sizes at other
    strides: with twice the size, its P4 shows the same places as the student's P3. Where no size agrees,
    the teacher's maps nearest in size are resized.

    Args:
        same_channels: Whether maps must have the same number of channels. A loss that does not
            compare them channel by channel (``AttentionTransfer``, ``RKDDistance``, ``RKDAngle``)
            needs no connector with False.
        levels: Compare only these of the common levels, counted from 0. None for all.
    """

    def __init__(self, same_channels: bool = True, levels: Sequence[int] | None = None) -> None:
        self.same_channels = same_channels
        self.levels = levels

    def __call__(self, student: Any, teacher: Any, step: Step) -> list[Pair]:
        theirs = levels_of(teacher, 'teacher')
        pairs = common_levels(
            levels_of(student, 'student'),
            theirs,
            same_channels=self.same_channels,
            scale=step.scale,
        )
        known = step.known(self.teacher)
        if known is not None:
            # What is not known is made equal: zero on both sides.
            masks = {id(level): mask for level, mask in zip(theirs, known, strict=True)}
            pairs = [(a * masks[id(b)], b * masks[id(b)]) for a, b in pairs]
        if self.levels is not None:
            if not self.levels or not all(0 <= index < len(pairs) for index in self.levels):
                raise ConfigError(
                    f'align.levels={list(self.levels)}: there are {len(pairs)} common levels, 0 to '
                    f'{len(pairs) - 1}'
                )
            pairs = [pairs[index] for index in self.levels]
        return [Pair(level, other) for level, other in pairs]


@TASK_UTILS.register_module()
class ForegroundFeatureAlignment(FeatureAlignment):
    """The same, and where the labels say that objects are, for :class:`mmkd.losses.FGD`.

    ``Pair.target`` is, of each place, one over the number of places of the smallest box that covers it
    and 0 in the background, shape (N, H, W). A box covers the places from the floor to the ceiling of
    its edges, both included, as in the code published with FGD. That code scales boxes as if a map
    showed the image alone; here it shows the padded batch, as it does.
    """

    target = 'foreground'

    def __call__(self, student: Any, teacher: Any, step: Step) -> list[Pair]:
        pairs = super().__call__(student, teacher, step)
        for pair in pairs:
            pair.target = foreground(step, tuple(pair.teacher.shape[2:]), pair.teacher.device)
        return pairs


def foreground(step: Step, size: tuple[int, int], device: torch.device) -> Tensor:
    """One over the area of the smallest labelled box on each place of a map, 0 where there is none.

    Args:
        step: The training step.
        size: Height and width of the map.
        device: Where to compute it.

    Returns:
        Shape (N, height, width).
    """
    samples, (height, width) = step.data_samples, size
    boxes, image = labelled_boxes(step, device)
    shape = samples[0].metainfo.get('batch_input_shape') or samples[0].metainfo['img_shape']
    scale = torch.tensor([width / shape[1], height / shape[0]], device=device).repeat(2)
    edges = boxes * scale
    start, end = edges[:, :2].floor().clamp(min=0), edges[:, 2:].ceil()
    end = torch.minimum(end, end.new_tensor([width - 1, height - 1]))
    inside = [
        (place >= start[:, axis, None]) & (place <= end[:, axis, None])
        for axis, place in enumerate(
            torch.arange(length, device=device) for length in (width, height)
        )
    ]
    area = (end - start + 1).clamp(min=1).prod(1)
    share = (inside[1][:, :, None] & inside[0][:, None, :]) / area[:, None, None]
    result = share.new_zeros(len(samples), height, width)
    return result.scatter_reduce_(0, image[:, None, None].expand_as(share), share, 'amax')


def labelled_boxes(step: Step, device: torch.device) -> tuple[Tensor, Tensor]:
    """The objects of all images: corners in pixels, shape (G, 4), and their images, shape (G,)."""
    boxes = [get_box_tensor(sample.gt_instances.bboxes) for sample in step.data_samples]
    image = [torch.full((len(each),), index) for index, each in enumerate(boxes)]
    return torch.cat(boxes).to(device), torch.cat(image).to(device)


def common_levels(
    ours: list[Tensor],
    theirs: list[Tensor],
    connector: str = 'ConvConnector',
    same_channels: bool = True,
    scale: tuple[float, float] = (1.0, 1.0),
) -> list[tuple[Tensor, Tensor]]:
    """Maps of student and teacher of the same size, in order.

    Args:
        ours: The student's maps, shape (N, C, H, W) each.
        theirs: The teacher's.
        connector: What a message proposes where channels differ.
        same_channels: Whether they must not.
        scale: How much larger the teacher's images are, in width and height. Where no map has the same
            size for that reason, those of the teacher that differ by less than half an octave, or the only
            one there is, are brought to the student's.

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
            f"the {owner}'s output is {kinds}, not feature maps; record a module that gives tensors, or "
            f'choose with index='
        )
    return levels


def _sizes(levels: list[Tensor]) -> str:
    return ', '.join('x'.join(map(str, level.shape[2:])) for level in levels)
