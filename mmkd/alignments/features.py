"""Alignments of feature maps."""

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
from .padding import intersect_masks, map_geometry, valid_positions


@TASK_UTILS.register_module()
class FeatureAlignment(Alignment):
    """Pairs feature maps by their height and width, one pair per level.

    This is the default alignment. The recorded output may be a single map or a tuple of maps (the output
    of a neck). Levels that only one model has are left out: for P2 to P6 and P3 to P7, P3 to P6 are
    compared.

    A teacher that sees larger images (``teacher.scale``) has maps of the student's sizes at other strides.
    With twice the image size, its P4 shows the same positions as the student's P3. If no sizes agree, the
    teacher's maps that are nearest in size are resized.

    Positions on the padding of a batch are not compared, so the loss of an image does not depend on the
    other images. Neither are positions that a cached teacher has not stored. The published code of CWD,
    PKD, FGD and MGD takes means and sums over the padded maps: ``count_padding=True`` does the same.

    Args:
        same_channels: Whether both maps must have the same number of channels. Set it to False for losses
            that do not compare channels (``AttentionTransfer``, ``RKDDistance``, ``RKDAngle``); they then
            need no connector.
        levels: Indices of the common levels to compare, from 0. None: all.
        count_padding: Whether to compare positions on padding.

    Examples:
        >>> import torch
        >>> from mmdet.registry import TASK_UTILS
        >>> from mmkd.alignments import Step
        >>> align = TASK_UTILS.build(dict(type='FeatureAlignment'))
        >>> student = [torch.rand(2, 16, 16, 16), torch.rand(2, 16, 8, 8)]  # P3 and P4
        >>> teacher = [torch.rand(2, 16, 8, 8), torch.rand(2, 16, 4, 4)]  # P4 and P5
        >>> [pair.student.shape for pair in align(student, teacher, Step([], None, None, {}, {}))]
        [torch.Size([2, 16, 8, 8])]
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
        """Pair maps of the same size, one pair per common level; see :meth:`Alignment.__call__`."""
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
        if stored is not None:  # the masks are resized like the maps
            stored = [mask.float() for mask in stored]
            masks = common_levels(ours, stored, same_channels=False, scale=step.scale)
            for pair, (_, mask) in zip(pairs, masks, strict=True):
                pair.mask = mask[:, 0] > 0.5
        if not self.count_padding:
            for pair in pairs:
                pair.mask = intersect_masks(pair.mask, self._valid(pair.student, step))
        if self.levels is None:
            return pairs
        if not self.levels or not all(0 <= index < len(pairs) for index in self.levels):
            raise ConfigError(
                f'align.levels: must be indices of common levels, 0 to {len(pairs) - 1}, got '
                f'{list(self.levels)}'
            )
        return [pairs[index] for index in self.levels]

    def _valid(self, level: Tensor, step: Step) -> Tensor | None:
        """The positions that show the images, shape (N, H, W). None: all, or not maps of whole images."""
        of_proposals = self.student is not None and self.student.module.startswith('roi_head')
        if of_proposals or level.dim() != 4 or len(level) != len(step.data_samples):
            return None
        return valid_positions(step.data_samples, tuple(level.shape[2:]), level.device)


@TASK_UTILS.register_module()
class ForegroundFeatureAlignment(FeatureAlignment):
    """A FeatureAlignment that also provides the labelled foreground, for :class:`mmkd.losses.FGD`.

    ``Pair.target`` has the shape (N, H, W). At a position that a labelled box covers, it is one over the
    number of positions of the smallest such box. In the background it is 0. A box covers the positions
    from the floor to the ceiling of its edges, both included, within the image, as in FGD's published
    code. That code scales boxes as if the map showed the image without padding; here they are scaled by
    the stride.

    The arguments are those of :class:`FeatureAlignment`.

    Examples:
        >>> import torch
        >>> from mmdet.registry import TASK_UTILS
        >>> from mmdet.structures import DetDataSample
        >>> from mmengine.structures import InstanceData
        >>> from mmkd.alignments import Step
        >>> align = TASK_UTILS.build(dict(type='ForegroundFeatureAlignment'))
        >>> sample = DetDataSample(metainfo=dict(img_shape=(64, 64)))
        >>> sample.gt_instances = InstanceData(bboxes=torch.tensor([[0.0, 0.0, 15.0, 15.0]]))
        >>> maps = torch.rand(1, 16, 8, 8)  # stride 8: the box covers 3 x 3 positions
        >>> (pair,) = align(maps, maps, Step([sample], None, None, {}, {}))
        >>> round(pair.target.max().item(), 4), int((pair.target > 0).sum())
        (0.1111, 9)
    """

    target = 'foreground'

    def __call__(self, student: Any, teacher: Any, step: Step) -> list[Pair]:
        """Pair maps as :class:`FeatureAlignment` does, and set :attr:`Pair.target`."""
        pairs = super().__call__(student, teacher, step)
        for pair in pairs:
            pair.target = foreground(step, tuple(pair.teacher.shape[2:]), pair.teacher.device)
        return pairs


def foreground(step: Step, size: Sequence[int], device: torch.device) -> Tensor:
    """Return one over the area (in positions) of the smallest labelled box at each position of a map.

    It is 0 at positions without a box.

    Args:
        step: The data of the step.
        size: Height and width of the map.
        device: The device of the result.

    Returns:
        Shape (N, height, width).
    """
    boxes, image = labelled_boxes(step, device)
    geometry = [map_geometry(sample, size) for sample in step.data_samples]
    # Non-blocking copies: torch.tensor(…, device=device) would wait for the device.
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
    """Return the labelled boxes of all images, shape (G, 4), and the index of each box's image, (G,)."""
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
    """Return pairs of maps of student and teacher of the same size, in order.

    Args:
        ours: The student's maps, shape (N, C, H, W) each.
        theirs: The teacher's maps.
        connector: The connector that the message proposes if channels differ; None if ``ours`` are the
            outputs of a connector.
        same_channels: Whether maps must have the same number of channels.
        scale: Width and height of the teacher's images relative to the student's. If therefore no sizes
            agree, the teacher's maps are resized to the student's: those that differ by less than half an
            octave, or the only one.

    Raises:
        ConfigError: There is no common level, or the shapes at a level differ.
    """
    # With other factors than powers of two, equal sizes are a coincidence.
    octaves = [math.log2(factor) for factor in scale]
    pairs = list(_of_same_size(ours, theirs)) if octaves == [round(o) for o in octaves] else []
    if not pairs and scale != (1.0, 1.0):
        pairs = list(_of_similar_size(ours, theirs))
    if not pairs:
        raise ConfigError(
            f'align: no common level: the student has maps of {_sizes(ours)}, the teacher of '
            f'{_sizes(theirs)}; record modules with the same strides'
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
    start = (
        0  # levels stay in order, because the smallest maps of small images may have the same size
    )
    for level in ours:
        for index in range(start, len(theirs)):
            if theirs[index].shape[2:] == level.shape[2:]:
                yield level, theirs[index]
                start = index + 1
                break


def _of_similar_size(ours: list[Tensor], theirs: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    # Levels are one octave apart, so each has at most one counterpart. Single maps are always paired.
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
    """Return a recorded output as a list of maps.

    Raises:
        ConfigError: The output is not a tensor or a list or tuple of tensors.
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
