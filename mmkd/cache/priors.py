"""Store the outputs of a dense head or an RPN at its top-scoring priors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..alignments.base import strides_of
from ..alignments.dense_output import HEAD
from ..errors import ConfigError
from ..families import Family, SingleStage, TwoStage
from ..families.class_scores import uses_softmax
from ..families.dense_heads import (
    class_logits,
    class_output,
    decode_boxes,
    dense_head,
    encode_boxes,
    prediction_scores,
)
from ..recorder import Source
from .contents import Batch, Content, ReadOutput, Restored, to_half
from .views import View, ViewTransform

# Class scores first, boxes second, as in the output of a dense head.
RPN = (Source('rpn_head.rpn_cls'), Source('rpn_head.rpn_reg'))
# The smallest box that is encoded, in pixels.
_MIN_SIZE = 1.0
# Smaller probabilities are raised to this value before a logarithm.
_MIN_PROBABILITY = 1e-6


class PriorContent(Content):
    r"""The top-scoring priors of an image: their positions, and the outputs of the head there.

    In another view, a stored prior is mapped to the nearest prior of the same kind, on the level with the
    stride that corresponds to the new image size. Its box is transformed with the image. If several stored
    priors are mapped to the same prior, the top-scoring one is used. Priors outside the view are dropped.
    All other priors have the class scores (for YOLOX, objectness too) of the mean probability of the priors
    that were not stored. Their boxes have weight 0
    (:attr:`mmkd.cache.contents.Restored.stored_masks`).

    Box-edge distributions (GFL) are shifted and scaled bin by bin. The probability of a bin is shared
    between its two nearest new bins, which keeps the mean.
    """

    @classmethod
    def can_store(cls, source: Source, family: Family) -> bool:
        """Return whether this kind can store a source; defined by subclasses."""
        raise NotImplementedError

    @property
    def head(self) -> Any:
        """The dense head."""
        raise NotImplementedError

    def parts(self, read: ReadOutput) -> list[list[Tensor]]:
        """Return the outputs to store, class scores first: per level, shape (N, priors * width, H, W)."""
        raise NotImplementedError

    def sources_of(self, parts: list[list[Tensor]]) -> dict[Source, Any]:
        """Return the outputs by source: the inverse of :meth:`parts`."""
        raise NotImplementedError

    def lacks(self, needed: Content) -> str | None:
        """Name what is missing; top-scoring priors of other classes are missing, too."""
        if self.settings['classes'] != needed.settings['classes']:
            return 'the top-scoring priors of the classes of this student'
        return super().lacks(needed)

    # ------------------------------------------------------------------ writing

    def extract(
        self, read: ReadOutput, shared: dict[str, Any], image: int, view: View
    ) -> dict[str, Tensor]:
        """Return the outputs at the top-scoring priors of an image; see :meth:`Content.extract`."""
        parts = self.parts(read)
        kinds = self.head.prior_generator.num_base_priors
        by_level: list[list[Tensor]] = [[] for _ in parts]
        per_level: list[Tensor] = []
        for index, levels in enumerate(zip(*parts, strict=True)):
            for found, level in zip(by_level, levels, strict=True):
                # In the order of alignments: position by position, with all priors of a position.
                each = level[image].permute(1, 2, 0)
                found.append(each.reshape(-1, each.shape[-1] // kinds[index]).float())
            height, width = levels[0].shape[2:]
            position = torch.cartesian_prod(*map(torch.arange, (height, width, kinds[index])))
            position = position.reshape(-1, 3)
            per_level.append(torch.cat([torch.full((len(position), 1), index), position], -1))
        rows, positions = [torch.cat(found) for found in by_level], torch.cat(per_level)
        rows[0] = class_logits(self.head, rows[0])
        quality = rows[2] if len(rows) > 2 and dense_head(self.head).quality else None
        scores = prediction_scores(self.head, rows[0], quality)
        confidence = scores[:, self.settings['classes']].amax(-1)
        chosen = confidence.topk(min(self.settings['num_priors'], len(confidence))).indices
        others = torch.ones(len(confidence), dtype=torch.bool, device=chosen.device)
        others[chosen] = False
        kept = {}
        for number, part in enumerate(rows):
            if number != 1:  # a mean of boxes has no meaning
                sigmoid = number > 0 or not uses_softmax(self.head)
                each = part[others] if others.any() else part
                kept[f'{self.kind}.rest{number}'] = _mean_scores(each, sigmoid)
        kept[f'{self.kind}.places'] = positions.to(chosen.device)[chosen].to(torch.int16)
        for number, part in enumerate(rows):
            kept[f'{self.kind}.part{number}'] = to_half(
                part[chosen], f'{self.kind} output {number}'
            )
        return kept

    # ------------------------------------------------------------------ reading

    def restore(self, batch: Batch) -> Restored:
        """Insert the stored priors into maps of the batch's size; see :meth:`Content.restore`."""
        counts = [len(fields[f'{self.kind}.places']) for fields in batch.fields]
        image = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(batch.device)
        positions = batch.concatenate(f'{self.kind}.places').long()
        names = sorted(name for name in batch.fields[0] if name.startswith(f'{self.kind}.part'))
        rows = [batch.concatenate(name) for name in names]
        grid = _PriorGrid(self.head.prior_generator, batch)
        if not batch.transform.is_identity:
            transform = batch.scaled_transform.to(batch.device).rows(image)
            positions, rows[1:], valid = self._in_new_view(
                positions, rows[1:], transform, grid, batch
            )
        else:
            valid = grid.inside(positions)  # the teacher's batch may have had more padding
        index = grid.index(image, positions, valid)
        nothing = rows[0].new_zeros(len(counts), 1)
        fills = [
            nothing.expand(-1, part.shape[-1])
            if number == 1
            else batch.stack(f'{self.kind}.rest{number}')
            for number, part in enumerate(rows)
        ]
        levels = [grid.levels(index, part, fill) for part, fill in zip(rows, fills, strict=True)]
        levels[0] = [class_output(self.head, level) for level in levels[0]]
        values = self.sources_of(levels)
        known = grid.levels(index, rows[0].new_ones(len(index), 1), nothing)
        masks = [level > 0.5 for level in known]
        return Restored(values, {}, dict.fromkeys(values, masks))

    def _in_new_view(
        self,
        positions: Tensor,
        rows: list[Tensor],
        transform: ViewTransform,
        grid: _PriorGrid,
        batch: Batch,
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """Positions and box outputs in the new view, and whether each prior is in the view."""
        level, kind = positions[:, 0], positions[:, 3]
        before = grid.priors(positions)
        center = transform.points(_center(before))
        stride = grid.strides[level]
        grown = transform.scale.abs().log().mean(-1) + stride.log().mean(-1)
        distance = (grid.strides.log().mean(-1) - grown[:, None]).abs()
        far, new_level = distance.min(-1)
        new_stride = grid.strides[new_level]
        at = ((center - _center(grid.base[new_level, kind])) / new_stride).round().long()
        new = torch.stack([new_level, at[:, 1], at[:, 0], kind], -1)
        # Half an octave is 0.35 in natural logarithms; the rest is a tolerance.
        valid = grid.inside(new) & (far < 0.4)
        if not rows:
            return new, rows, valid
        after = grid.priors(new)
        if dense_head(self.head).coding == 'distribution':
            boxes = decode_boxes(self.head, before, stride[:, :1], rows[0])
            moved = self._distributions_in_new_view(
                rows[0], _center(after) - center, stride, new_stride, transform, _center(after)
            )
            visible = transform.boxes(boxes)[1]
        else:
            boxes = decode_boxes(self.head, before, stride[:, :1], rows[0])
            found, visible = transform.boxes(boxes)
            middle, size = _center(found), (found[:, 2:] - found[:, :2]).clamp(min=_MIN_SIZE)
            found = torch.cat([middle - size / 2, middle + size / 2], -1)
            moved = encode_boxes(self.head, after, new_stride[:, :1], found)
        return new, [moved, *rows[1:]], valid & (visible >= batch.min_visible)

    def _distributions_in_new_view(
        self,
        rows: Tensor,
        shift: Tensor,
        stride: Tensor,
        new_stride: Tensor,
        transform: ViewTransform,
        center: Tensor,
    ) -> Tensor:
        bins = self.head.reg_max + 1
        edges = rows.reshape(-1, 4, bins).softmax(-1)  # left, top, right, bottom
        flipped = transform.scale < 0
        swap = flipped.repeat(1, 2)[..., None]
        edges = torch.where(swap, edges.roll(2, 1), edges)
        factor = (transform.scale.abs() * stride / new_stride).repeat(1, 2)[..., None]
        shift = shift / new_stride
        shift = torch.cat([shift, -shift], -1)[..., None]
        # No edge can be beyond the border at which the view crops the image.
        limit = torch.cat([center - transform.low, transform.high - center], -1)
        limit = (limit / new_stride.repeat(1, 2))[..., None]
        at = torch.arange(bins, device=rows.device) * factor + shift
        at = torch.minimum(at, limit).clamp(0, bins - 1)
        lower = at.floor().clamp(max=bins - 2)
        upper_share = at - lower
        new = torch.zeros_like(edges)
        new.scatter_add_(-1, lower.long(), edges * (1 - upper_share))
        new.scatter_add_(-1, lower.long() + 1, edges * upper_share)
        return new.clamp(min=_MIN_PROBABILITY).log().reshape(rows.shape)


class DenseContent(PriorContent):
    """The top-scoring priors of the head of a single-stage detector."""

    kind = 'dense'

    @classmethod
    def can_store(cls, source: Source, family: Family) -> bool:
        """Return whether the source is an output in the head of a single-stage detector."""
        within = source.module.split('.')[0] == 'bbox_head'
        return isinstance(family, SingleStage) and within and source.capture == 'output'

    @property
    def head(self) -> Any:
        """The ``bbox_head``."""
        return self.detector.bbox_head

    def parts(self, read: ReadOutput) -> list[list[Tensor]]:
        """Return the outputs of the head, and note which of them other sources are."""
        parts = [list(part) for part in read(HEAD)]
        aliases = {}
        for source in self.sources:
            if source != HEAD:
                aliases[str(source)] = self._part_of(source, read(source), parts)
        self.settings['aliases'] = aliases
        return parts

    @staticmethod
    def _part_of(source: Source, value: Any, parts: list[list[Tensor]]) -> int:
        levels = value if isinstance(value, list) else [value]
        for index, part in enumerate(parts):
            if len(part) == len(levels) and all(
                isinstance(a, Tensor) and a.shape == b.shape and bool((a == b).all())
                for a, b in zip(levels, part, strict=True)
            ):
                return index
        raise ConfigError(
            f"'{source}' cannot be stored in a cache: it is not one of the outputs of bbox_head; record "
            f'bbox_head'
        )

    def sources_of(self, parts: list[list[Tensor]]) -> dict[Source, Any]:
        """Return the outputs of the head, and of each other source the output that it is."""
        aliases = self.settings.get('aliases', {})
        values: dict[Source, Any] = {HEAD: tuple(parts)}
        for source in self.sources:
            if source != HEAD:
                values[source] = parts[aliases[str(source)]]
        return values


class RPNContent(PriorContent):
    """The top-scoring anchors of the RPN of a two-stage detector."""

    kind = 'rpn'

    @classmethod
    def can_store(cls, source: Source, family: Family) -> bool:
        """Return whether the source is one of the RPN's two outputs."""
        return isinstance(family, TwoStage) and source in RPN

    @property
    def head(self) -> Any:
        """The ``rpn_head``."""
        return self.detector.rpn_head

    def parts(self, read: ReadOutput) -> list[list[Tensor]]:
        """Return the class scores and, if losses read them, the deltas."""
        values = [read(source) for source in RPN if source == RPN[0] or source in self.sources]
        return [value if isinstance(value, list) else [value] for value in values]

    def sources_of(self, parts: list[list[Tensor]]) -> dict[Source, Any]:
        """Return the stored outputs of the RPN by source."""
        return dict(zip(RPN, parts, strict=False))


class _PriorGrid:
    """The priors of a head over a batch.

    Args:
        generator: The head's prior generator.
        batch: The batch.
    """

    def __init__(self, generator: Any, batch: Batch) -> None:
        self.images, device = len(batch.samples), batch.device
        self.kinds: Sequence[int] = generator.num_base_priors
        strides = strides_of(generator)
        height, width = batch.scaled_padded
        #: Height and width of each level.
        self.sizes = [
            (-(-height // int(down)), -(-width // int(across))) for across, down in strides
        ]
        self.strides = torch.tensor(strides, device=device, dtype=torch.float)
        most = max(self.kinds)
        base = [
            generator.single_level_grid_priors((1, 1), level, device='cpu')
            for level in range(len(strides))
        ]
        base = [torch.cat([each, each[:1].expand(most - len(each), -1)]) for each in base]
        #: Anchors or points at the first position of each level, shape (levels, kinds, 4 or 2).
        self.base = torch.stack(base).float().to(device)
        self._limits = torch.tensor(self.sizes, device=device)
        counts = [h * w * a for (h, w), a in zip(self.sizes, self.kinds, strict=True)]
        #: Number of priors per image, of each level.
        self.counts = counts
        starts = [sum(counts[:level]) * self.images for level in range(len(counts))]
        self._counts, self._starts, self._kinds = (
            torch.tensor(values, device=device) for values in (counts, starts, self.kinds)
        )

    def priors(self, positions: Tensor) -> Tensor:
        """Return anchors or points at positions (n, 4): level, row, column, kind."""
        level, row, column, kind = positions.unbind(-1)
        offset = torch.stack([column, row], -1) * self.strides[level]
        base = self.base[level, kind]
        return base + offset.repeat(1, base.shape[-1] // 2)

    def inside(self, positions: Tensor) -> Tensor:
        """Return whether each position is on its map, shape (n,)."""
        at, limit = positions[:, 1:3], self._limits[positions[:, 0]]
        return ((at >= 0) & (at < limit)).all(-1)

    def index(self, image: Tensor, positions: Tensor, valid: Tensor) -> Tensor:
        """Return the index of each row among all priors, shape (n,).

        The index is one past the end for rows that are invalid or not the first at their prior.
        """
        level, row, column, kind = positions.unbind(-1)
        width, kinds = self._limits[level, 1], self._kinds[level]
        index = (row * width + column) * kinds + kind
        index = self._starts[level] + image * self._counts[level] + index
        total = sum(self.counts) * self.images
        index = torch.where(valid, index, total)
        # The rows of an image are ordered by decreasing score.
        order = torch.arange(len(index), device=index.device)
        first = order.new_full((total + 1,), len(index))
        first.scatter_reduce_(0, index, order, 'amin')
        return torch.where(first[index] == order, index, total)

    def levels(self, index: Tensor, rows: Tensor, fill: Tensor) -> list[Tensor]:
        """Return one map per level, shape (N, kinds * width, H, W), with rows at their indices.

        Args:
            index: The result of :meth:`index`.
            rows: Shape (n, width).
            fill: The values of all other priors of each image, shape (N, width).
        """
        width = rows.shape[-1]
        fills = [fill[:, None].expand(-1, count, -1).reshape(-1, width) for count in self.counts]
        flat = torch.cat([*fills, fill[:1]])
        flat[index] = rows
        parts = flat[:-1].split([count * self.images for count in self.counts])
        return [
            part.reshape(self.images, *size, kinds * width).permute(0, 3, 1, 2)
            for part, size, kinds in zip(parts, self.sizes, self.kinds, strict=True)
        ]


def _center(priors: Tensor) -> Tensor:
    return priors if priors.shape[-1] == 2 else (priors[..., :2] + priors[..., 2:]) / 2


def _mean_scores(scores: Tensor, sigmoid: bool) -> Tensor:
    """The scores, shape (width,), of the mean probabilities of rows of scores, shape (n, width)."""
    probability = (scores.sigmoid() if sigmoid else scores.softmax(-1)).mean(0)
    probability = probability.clamp(_MIN_PROBABILITY, 1 - _MIN_PROBABILITY)
    return torch.logit(probability) if sigmoid else probability.log()
