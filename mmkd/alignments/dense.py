"""Alignments of dense heads: outputs at the same priors."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.registry import TASK_UTILS
from torch import Tensor

from ..errors import ConfigError
from ..families.class_scores import uses_softmax
from ..families.dense_heads import CENTERNESS, IOU, OBJECTNESS, dense_head
from ..families.single_stage import SingleStage
from ..recorder import Source
from ..types import Detector
from .base import (
    Alignment,
    Pair,
    Step,
    common_strides,
    require_same_shape,
    stored_weights,
    strides_and_scale,
    strides_of,
)
from .cross_head import CrossHead
from .dense_output import HEAD, DenseOutput
from .prior_selection import PriorSelection

MIN_PROBABILITY = 1e-6  # smaller probabilities are raised to this value before a logarithm


class DenseAlignment(Alignment):
    """Base class of the alignments below: pairs the priors (anchors or points) that both heads have.

    Levels are paired by stride. At a common level, both heads must have the same priors. If the teacher
    sees larger images (``teacher.scale``), its strides and anchors are converted to the student's pixels.
    The heads must be in :data:`mmkd.families.dense_heads.DENSE_HEADS`.

    Args:
        select: The priors to compare. ``all``: all priors. ``labels``: those to which the student's own
            losses assign an object. ``valuable``: anchors around objects, each weighted by its overlap
            (:func:`mmkd.alignments.valuable_region.valuable_region`).
        confidence: Whether to weight each prior by the teacher's score of its top-scoring shared class,
            including centerness or objectness if the head multiplies by it. Most priors show no object.
            With False, all priors have the same weight.
        num_priors: Number of priors per batch to compare, those of the highest confidence. None: all.
        crossed: A layer of the teacher, e.g. ``bbox_head.cls_convs.2.gn`` (CrossKD). The student's recorded
            maps replace the output of this layer, and the output of the rest of the teacher's head is
            compared with the teacher's own output (:class:`mmkd.alignments.cross_head.CrossHead`). The
            student's own predictions are trained by the labels only.
        normalizer: The divisor of the sum over priors, instead of their number or the sum of their weights.
            A number; or a recorded value of the student, such as the number of objects by which its own
            loss divides, ``dict(module='bbox_head.loss_cls', capture='input', index='avg_factor')``; or
            ``confidence``: the sum of the teacher's confidence over all priors, at least 1, which estimates
            the number of objects without labels.
        count_padding: Whether to compare priors on the padding of a batch.
    """

    default_module = 'bbox_head'
    needs_class_map = True
    #: Whether a cached teacher provides an estimate for priors that are not stored.
    estimated_everywhere = False
    #: Whether both heads need the same priors. False: the same number of priors per position is enough.
    same_anchors = True

    def __init__(
        self,
        select: str = 'all',
        confidence: bool = True,
        num_priors: int | None = None,
        crossed: str | None = None,
        normalizer: float | str | dict[str, Any] | None = None,
        count_padding: bool = False,
    ) -> None:
        self.selection = PriorSelection(select, confidence, num_priors, normalizer, count_padding)
        self.crossed = None if crossed is None else CrossHead(crossed)
        #: Pairs (index of the student's level, index of the teacher's level), one per common level.
        self.levels: list[tuple[int, int]] = []
        self.scale = 1.0

    @property
    def reduces_over_ranks(self) -> bool:
        """True without a normalizer. A normalizer is the same on all ranks, like mmdet's avg_factor."""
        return self.selection.normalizer is None

    @property
    def runs_teacher_layers(self) -> bool:
        """True with ``crossed``."""
        return self.crossed is not None

    @property
    def can_average_teachers(self) -> bool:
        """True if neither ``num_priors`` nor ``crossed`` makes the rows depend on the teacher."""
        return self.selection.num_priors is None and self.crossed is None

    def default_source(self, owner: str, model: Detector) -> Source | None:
        """Return the head's output, or the layer of ``crossed`` for the student."""
        if self.crossed is not None and owner == 'student':
            return self.crossed.source
        return super().default_source(owner, model)

    @property
    def student_sources(self) -> list[Source]:
        """The labels and the normalizer, if they are recorded."""
        return self.selection.sources

    @property
    def teacher_sources(self) -> list[Source]:
        """The head's output, for the confidence, and the layer of ``crossed``."""
        return [HEAD] if self.crossed is None else [HEAD, self.crossed.source]

    def check(self, student: Detector, teacher: Detector, options: dict[str, Any]) -> None:
        """Find the common levels and check that their priors agree; see :meth:`Alignment.check`."""
        for owner, model in (('student', student), ('teacher', teacher)):
            if not SingleStage.covers(model):
                raise ConfigError(
                    f'align: {type(self).__name__} needs dense heads with priors, but the {owner}, a '
                    f'{type(model).__name__}, has none; compare features'
                )
            dense_head(model.bbox_head)
        ours, theirs = (model.bbox_head.prior_generator for model in (student, teacher))
        self.scale = options.get('scale', 1.0)
        self.levels = common_strides(ours, theirs, self.scale)
        if not self.levels:
            raise ConfigError(
                f'align: the heads have no common level: {strides_and_scale(ours, theirs, self.scale)}'
            )
        self.selection.check(student, teacher)
        if self.crossed is not None:
            self.crossed.check(student, teacher, options)
        if self.crossed is None or self.selection.select != 'all':
            for index, other in self.levels:
                self._require_same_priors(ours, theirs, index, other)
        softmax = [uses_softmax(model.bbox_head) for model in (student, teacher)]
        if softmax[0] != softmax[1] and self.crossed is None:
            raise ConfigError(
                'align: both heads must use a softmax or both sigmoids, got one of each, so their scores '
                'cannot be compared; compare boxes or features'
            )

    def _require_same_priors(self, student: Any, teacher: Any, index: int, other: int) -> None:
        counts = [g.num_base_priors[i] for g, i in ((student, index), (teacher, other))]
        same = counts[0] == counts[1]
        if same and self.same_anchors:
            ours, theirs = (getattr(g, 'base_anchors', None) for g in (student, teacher))
            if ours is None and theirs is None:
                same = getattr(student, 'offset', None) == getattr(teacher, 'offset', None)
            else:
                same = ours is not None and theirs is not None
                if ours is not None and theirs is not None:
                    same = torch.allclose(ours[index], theirs[other] / self.scale)
        if not same:
            raise ConfigError(
                f'align: both heads must have the same priors at stride {strides_of(student)[index]}, got '
                f'{counts[0]} per position of {type(student).__name__} (student) and {counts[1]} of '
                f'{type(teacher).__name__} (teacher); configure the same priors, or compare features'
            )

    def outputs(self, student: Any, teacher: Any, step: Step) -> tuple[DenseOutput, DenseOutput]:
        """Return the two outputs to compare. With :attr:`crossed`, both are outputs of the teacher's head."""
        theirs = self._output(teacher, 'teacher', step)
        if self.crossed is None:
            return self._output(student, 'student', step), theirs
        crossed = self.crossed.output(student, step)
        return DenseOutput(crossed, 'student', theirs.head, theirs.levels), theirs

    def _output(self, value: Any, owner: str, step: Step) -> DenseOutput:
        model, side = (step.student, 0) if owner == 'student' else (step.teacher, 1)
        return DenseOutput(value, owner, model.bbox_head, [pair[side] for pair in self.levels])

    def run_teacher_layers(self, student: Any, step: Step) -> list[Tensor]:
        """Return the teacher's outputs for the student's maps that have a gradient (``crossed``)."""
        if self.crossed is None:
            return []
        output = self.crossed.output(student, step)
        return [level for part in output for level in part if level.requires_grad]

    def pair(
        self,
        outputs: tuple[DenseOutput, DenseOutput],
        student: Tensor,
        teacher: Tensor,
        step: Step,
        rows_per_prior: int = 1,
    ) -> Pair:
        """Select and weight the priors to compare.

        Args:
            outputs: The result of :meth:`outputs`.
            student: Rows of the student, shape (priors * rows_per_prior, width).
            teacher: Rows of the teacher, of the same shape.
            step: The data of the step.
            rows_per_prior: Number of rows per prior.
        """
        require_same_shape(student, teacher, 'priors')
        ours = self._output(outputs[0].value, 'student', step)
        theirs = self._output(step.teacher_record[HEAD], 'teacher', step)
        weight, chosen = self.selection.weights_and_indices(ours, theirs, step)
        total: Tensor | float | None = None
        stored = self._stored(step)
        if chosen is not None:
            student, teacher = (
                side.reshape(-1, rows_per_prior, side.shape[-1])[chosen].flatten(0, 1)
                for side in (student, teacher)
            )
            weight, stored = (None if each is None else each[chosen] for each in (weight, stored))
        if stored is not None:
            weight, total = stored_weights(weight, stored)
        divisor = self.selection.divisor(theirs, step)
        total = total if divisor is None else divisor
        if weight is not None and rows_per_prior > 1:
            weight = weight.repeat_interleave(rows_per_prior)
        return Pair(
            student, teacher, weight, total=None if total is None else total * rows_per_prior
        )

    def _stored(self, step: Step) -> Tensor | None:
        """1 for priors that the cache of the teacher contains, else 0; None: all."""
        masks = None if self.estimated_everywhere else step.stored_masks(HEAD)
        if masks is None:
            return None
        masks = [masks[other] for _, other in self.levels]
        return torch.cat([mask.permute(0, 2, 3, 1).flatten() for mask in masks]).float()


@TASK_UTILS.register_module()
class DenseClassAlignment(DenseAlignment):
    """Pairs the class scores of two dense heads before the activation, one row per prior.

    The scores do not include centerness or objectness.

    Args:
        activation: The activation that the loss must use. Default: the activation of the head. The scores
            of a sigmoid head can also be compared with a softmax over the classes.
        others: Arguments of :class:`DenseAlignment`.

    Examples:
        >>> from mmengine.hub import get_model
        >>> from mmdet.registry import TASK_UTILS
        >>> import mmkd
        >>> align = TASK_UTILS.build(dict(type='DenseClassAlignment', select='labels'))
        >>> detector = get_model('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
        >>> align.check(student=detector, teacher=detector, options={})
        >>> align.activation, align.levels  # P3 to P7 of both
        ('sigmoid', [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)])
    """

    estimated_everywhere = True

    def __init__(self, activation: str | None = None, **others: Any) -> None:
        super().__init__(**others)
        self._given_activation = activation

    def check(self, student: Detector, teacher: Detector, options: dict[str, Any]) -> None:
        """Check as :class:`DenseAlignment` does, and set ``activation``."""
        super().check(student, teacher, options)
        own = 'softmax' if uses_softmax(teacher.bbox_head) else 'sigmoid'
        self.activation = self._given_activation or own

    def __call__(self, student: Any, teacher: Any, step: Step) -> list[Pair]:
        """Pair scores of the shared classes, shape (priors, scores); see :meth:`Alignment.__call__`."""
        outputs = self.outputs(student, teacher, step)
        scores: list[Tensor] = []
        for output in outputs:
            shared = step.class_map.student_logits
            if output.head is step.teacher.bbox_head:
                shared = step.class_map.teacher_logits
            scores.append(shared(output.class_logits(), uses_softmax(output.head)))
        return [self.pair(outputs, scores[0], scores[1], step)]


class DenseQualityAlignment(DenseAlignment):
    """Base class of the two alignments of the third output: one value per prior, before a sigmoid."""

    activation = 'sigmoid'
    #: The supported meanings of the third output.
    qualities: tuple[str, ...] = ()

    def check(self, student: Detector, teacher: Detector, options: dict[str, Any]) -> None:
        """Check as :class:`DenseAlignment` does, and that both heads have the same third output."""
        super().check(student, teacher, options)
        wanted = dense_head(teacher.bbox_head).quality
        for owner, model in (('teacher', teacher), ('student', student)):
            if dense_head(model.bbox_head).quality not in {wanted} & {*self.qualities}:
                raise ConfigError(
                    f'align: {type(self).__name__} needs '
                    f'{wanted if wanted in self.qualities else " or ".join(self.qualities)}, but the '
                    f'{owner}, a {type(model).__name__}, has none; remove this entry'
                )

    def __call__(self, student: Any, teacher: Any, step: Step) -> list[Pair]:
        """Pair the third outputs, shape (priors, 1); see :meth:`Alignment.__call__`."""
        outputs = self.outputs(student, teacher, step)
        ours, theirs = (output.quality() for output in outputs)
        return [self.pair(outputs, ours, self.for_shared_classes(theirs, outputs[1], step), step)]

    def for_shared_classes(self, quality: Tensor, teacher: DenseOutput, step: Step) -> Tensor:
        """Convert the teacher's quality to the classes of the student, which may be fewer."""
        return quality


@TASK_UTILS.register_module()
class DenseCenternessAlignment(DenseQualityAlignment):
    """Pairs the centerness of two heads (FCOS, ATSS), or their estimate of the IoU (PAA, DDOD).

    The arguments are those of :class:`DenseAlignment`.

    Examples:
        >>> from mmdet.registry import TASK_UTILS
        >>> import mmkd
        >>> align = TASK_UTILS.build(dict(type='DenseCenternessAlignment', confidence=False))
        >>> align.qualities, align.activation
        (('centerness', 'iou'), 'sigmoid')
    """

    qualities = (CENTERNESS, IOU)


@TASK_UTILS.register_module()
class DenseObjectnessAlignment(DenseQualityAlignment):
    """Pairs the objectness of two heads (YOLOX, AutoAssign).

    The class scores of such a head assume that an object is present. They alone do not train a student
    without labels to separate objects from background. If the teacher has more classes, its objectness
    includes objects of all of them. It is then multiplied by the score of the teacher's top-scoring shared
    class divided by the score of its top-scoring class.

    Args:
        confidence: See :class:`DenseAlignment`. Default: False, because the background must be learned too.
        others: Other arguments of :class:`DenseAlignment`.

    Examples:
        >>> from mmdet.registry import TASK_UTILS
        >>> import mmkd
        >>> align = TASK_UTILS.build(dict(type='DenseObjectnessAlignment'))
        >>> align.selection.confidence, align.default_module
        (False, 'bbox_head')
    """

    qualities = (OBJECTNESS,)
    estimated_everywhere = True

    def __init__(self, confidence: bool = False, **others: Any) -> None:
        super().__init__(confidence=confidence, **others)

    def for_shared_classes(self, quality: Tensor, teacher: DenseOutput, step: Step) -> Tensor:
        """Reduce the teacher's objectness to objects of the shared classes, shape (priors, 1)."""
        if step.class_map.excludes:
            raise ConfigError(
                f'align: {type(self).__name__} does not support class_map.exclude, because the teacher does '
                f'not detect objects of these classes; remove this entry'
            )
        if not step.class_map.unmapped_teacher_index:
            return quality
        scores = self._output(step.teacher_record[HEAD], 'teacher', step).class_logits()
        known = step.class_map.teacher_logits(scores, softmax=False)
        share = known.sigmoid().amax(-1) / scores.sigmoid().amax(-1)
        return (
            (quality.sigmoid() * share[:, None]).clamp(MIN_PROBABILITY, 1 - MIN_PROBABILITY).logit()
        )


@TASK_UTILS.register_module()
class DenseBoxAlignment(DenseAlignment):
    """Pairs the decoded boxes of two dense heads, one row per prior.

    Boxes are corners x1, y1, x2, y2 in fractions of image width and height. Heads with different codings
    (deltas, distances, distributions) can be compared if they predict the same number of boxes per
    position. The arguments are those of :class:`DenseAlignment`.

    Examples:
        >>> from mmdet.registry import TASK_UTILS
        >>> import mmkd
        >>> align = TASK_UTILS.build(dict(type='DenseBoxAlignment', select='labels', num_priors=500))
        >>> align.box_format, align.selection.select, align.selection.num_priors
        ('xyxy', 'labels', 500)
    """

    box_format = 'xyxy'
    same_anchors = False

    def __call__(self, student: Any, teacher: Any, step: Step) -> list[Pair]:
        """Pair decoded boxes, shape (priors, 4); see :meth:`Alignment.__call__`."""
        outputs = self.outputs(student, teacher, step)
        sides: list[Tensor] = []
        size = [sample.metainfo['img_shape'][1::-1] for sample in step.data_samples]
        for output in outputs:
            boxes = output.boxes()
            whole = boxes[0].new_tensor(size)
            if output.head is step.teacher.bbox_head:
                whole = whole * whole.new_tensor(step.scale)
            whole = whole.repeat(1, 2)[:, None]
            sides.append(torch.cat([(level / whole).flatten(0, 1) for level in boxes]))
        return [self.pair(outputs, sides[0], sides[1], step)]


@TASK_UTILS.register_module()
class DenseDistributionAlignment(DenseAlignment):
    """Pairs the box-edge distributions of GFL heads, one row per edge.

    Use it with ``KLDivergence`` at a high temperature: Zheng et al., "Localization Distillation for Dense
    Object Detection", CVPR 2022 (arXiv 2102.12252). The paper compares the priors to which labels assign
    an object (``select='labels'``). By default, all priors are compared and weighted by the teacher's
    confidence. The arguments are those of :class:`DenseAlignment`.

    Examples:
        >>> from mmdet.registry import TASK_UTILS
        >>> import mmkd
        >>> align = TASK_UTILS.build(dict(type='DenseDistributionAlignment', select='valuable'))
        >>> align.activation, align.selection.select
        ('softmax', 'valuable')
    """

    activation = 'softmax'

    def check(self, student: Detector, teacher: Detector, options: dict[str, Any]) -> None:
        """Check as :class:`DenseAlignment` does, and that both heads have the same number of bins."""
        super().check(student, teacher, options)
        bins = [
            head.reg_max if dense_head(head).coding == 'distribution' else None
            for head in (student.bbox_head, teacher.bbox_head)
        ]
        if bins[1] is None or (self.crossed is None and bins[0] != bins[1]):
            raise ConfigError(
                f'align: {type(self).__name__} needs two heads with box-edge distributions (GFLHead) and '
                f'the same reg_max, got reg_max={bins[0]} (student) and {bins[1]} (teacher); set the same '
                f'reg_max, or use DenseBoxAlignment'
            )

    def __call__(self, student: Any, teacher: Any, step: Step) -> list[Pair]:
        """Pair the distributions of box edges, shape (priors * 4, bins); see :meth:`Alignment.__call__`."""
        bins = step.teacher.bbox_head.reg_max + 1
        outputs = self.outputs(student, teacher, step)
        ours, theirs = (
            torch.cat([each.permute(0, 2, 3, 1).reshape(-1, bins) for each in output.box_maps()])
            for output in outputs
        )
        return [self.pair(outputs, ours.float(), theirs.float(), step, rows_per_prior=4)]
