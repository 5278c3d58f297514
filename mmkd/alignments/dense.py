"""Outputs of dense heads at the same positions."""

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

MIN_PROBABILITY = 1e-6  # the least probability that a logarithm is taken of


class DenseAlignment(Alignment):
    """Base of the alignments below: priors (anchors or points) that both heads have.

    Levels are paired by stride; at a common level the priors must be the same. Strides and anchors of a
    teacher that sees larger images (``teacher.scale``) are measured in the student's pixels. The heads must
    be in :data:`mmkd.families.dense_heads.DENSE_HEADS`.

    Args:
        select: ``all`` priors; those to which the student's own losses assign an object (``labels``); or,
            of anchors, the ``valuable`` ones around objects, each weighted by its overlap
            (:func:`mmkd.alignments.valuable_region.valuable_region`).
        confidence: Weight each prior by the score that the teacher predicts for its top-scoring shared
            class, centerness or objectness included where the head multiplies by it. Most priors show
            no object; with False all count alike.
        num_priors: Compare only this many priors per batch, those of the highest confidence. None for all.
        crossed: The teacher's layer, e.g. ``bbox_head.cls_convs.2.gn``, that is replaced by the student's
            recorded maps. The teacher's prediction is then compared with what the rest of its head
            computes from them (:class:`mmkd.alignments.cross_head.CrossHead`), and the student's own
            prediction is left to the labels.
        normalizer: What the sum over priors is divided by, in place of their number or the sum of
            their weights: a number; or what the student records, e.g. the number of objects its own
            loss divides by, ``dict(module='bbox_head.loss_cls', capture='input', index='avg_factor')``;
            or ``confidence``, the sum of the teacher's over all priors, at least 1, which estimates the
            number of objects without labels.
        count_padding: Whether priors at positions on the padding of a batch count.
    """

    default_module = 'bbox_head'
    needs_class_map = True
    #: Whether a cached teacher has an estimate of it at priors that are not stored, too.
    estimated_everywhere = False
    #: Whether priors must be the same, not only equally many per position.
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
        #: Indices of the student's and of the teacher's level, per common level.
        self.levels: list[tuple[int, int]] = []
        self.scale = 1.0

    @property
    def reduces_over_ranks(self) -> bool:
        # Else the same number divides on all ranks, as mmdet's avg_factor.
        return self.selection.normalizer is None

    @property
    def runs_teacher_layers(self) -> bool:
        return self.crossed is not None

    @property
    def can_average_teachers(self) -> bool:
        return self.selection.num_priors is None and self.crossed is None

    def default_source(self, owner: str, model: Detector) -> Source | None:
        if self.crossed is not None and owner == 'student':
            return self.crossed.source
        return super().default_source(owner, model)

    @property
    def student_sources(self) -> list[Source]:
        return self.selection.sources

    @property
    def teacher_sources(self) -> list[Source]:
        return [HEAD] if self.crossed is None else [HEAD, self.crossed.source]

    def check(self, student: Detector, teacher: Detector, options: dict[str, Any]) -> None:
        for owner, model in (('student', student), ('teacher', teacher)):
            if not SingleStage.covers(model):
                raise ConfigError(
                    f'{type(self).__name__} pairs dense heads; the {owner}, a '
                    f'{type(model).__name__}, has none with priors'
                )
            dense_head(model.bbox_head)
        ours, theirs = (model.bbox_head.prior_generator for model in (student, teacher))
        self.scale = options.get('scale', 1.0)
        self.levels = common_strides(ours, theirs, self.scale)
        if not self.levels:
            raise ConfigError(
                f'the heads have no common level: {strides_and_scale(ours, theirs, self.scale)}'
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
                'one head uses a softmax and the other sigmoids: their scores have no common meaning'
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
                f'at stride {strides_of(student)[index]} the heads have different priors '
                f'({counts[0]} per position of {type(student).__name__}, the teacher {counts[1]} of '
                f'{type(teacher).__name__}); give both the same, or compare features'
            )

    def outputs(self, student: Any, teacher: Any, step: Step) -> tuple[DenseOutput, DenseOutput]:
        """Both sides of the comparison; with :attr:`crossed` both are outputs of the teacher's head."""
        theirs = self._output(teacher, 'teacher', step)
        if self.crossed is None:
            return self._output(student, 'student', step), theirs
        crossed = self.crossed.output(student, step)
        return DenseOutput(crossed, 'student', theirs.head, theirs.levels), theirs

    def _output(self, value: Any, owner: str, step: Step) -> DenseOutput:
        model, side = (step.student, 0) if owner == 'student' else (step.teacher, 1)
        return DenseOutput(value, owner, model.bbox_head, [pair[side] for pair in self.levels])

    def run_teacher_layers(self, student: Any, step: Step) -> list[Tensor]:
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
        """The priors that are compared.

        Args:
            outputs: As :meth:`outputs` returned them.
            student: Rows of the student, shape (priors * rows_per_prior, width).
            teacher: Rows of the teacher.
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
        """1 for priors that a cached teacher has stored, else 0; None for all."""
        masks = None if self.estimated_everywhere else step.stored_masks(HEAD)
        if masks is None:
            return None
        masks = [masks[other] for _, other in self.levels]
        return torch.cat([mask.permute(0, 2, 3, 1).flatten() for mask in masks]).float()


@TASK_UTILS.register_module()
class DenseClassAlignment(DenseAlignment):
    """Pairs the class scores of two dense heads before the activation, one row per prior.

    Centerness and objectness, where a head has them, are not part of them.

    Args:
        activation: Which activation a loss may use for the scores; by default the head's own. The
            scores of a sigmoid head can also be compared as a softmax over the classes.
        others: As :class:`DenseAlignment`.
    """

    estimated_everywhere = True

    def __init__(self, activation: str | None = None, **others: Any) -> None:
        super().__init__(**others)
        self._given_activation = activation

    def check(self, student: Detector, teacher: Detector, options: dict[str, Any]) -> None:
        super().check(student, teacher, options)
        own = 'softmax' if uses_softmax(teacher.bbox_head) else 'sigmoid'
        self.activation = self._given_activation or own

    def __call__(self, student: Any, teacher: Any, step: Step) -> list[Pair]:
        outputs = self.outputs(student, teacher, step)
        scores: list[Tensor] = []
        for output in outputs:
            shared = step.class_map.student_logits
            if output.head is step.teacher.bbox_head:
                shared = step.class_map.teacher_logits
            scores.append(shared(output.class_logits(), uses_softmax(output.head)))
        return [self.pair(outputs, scores[0], scores[1], step)]


class DenseQualityAlignment(DenseAlignment):
    """Base of the two alignments of the third output, one row of one number per prior, before a sigmoid."""

    activation = 'sigmoid'
    #: What the third output must estimate.
    qualities: tuple[str, ...] = ()

    def check(self, student: Detector, teacher: Detector, options: dict[str, Any]) -> None:
        super().check(student, teacher, options)
        wanted = dense_head(teacher.bbox_head).quality
        for owner, model in (('teacher', teacher), ('student', student)):
            if dense_head(model.bbox_head).quality not in {wanted} & {*self.qualities}:
                raise ConfigError(
                    f'{type(self).__name__}: the {owner}, a {type(model).__name__}, has no score of '
                    f'{wanted if wanted in self.qualities else " or ".join(self.qualities)}'
                )

    def __call__(self, student: Any, teacher: Any, step: Step) -> list[Pair]:
        outputs = self.outputs(student, teacher, step)
        ours, theirs = (output.quality() for output in outputs)
        return [self.pair(outputs, ours, self.for_shared_classes(theirs, outputs[1], step), step)]

    def for_shared_classes(self, quality: Tensor, teacher: DenseOutput, step: Step) -> Tensor:
        """The teacher's score as the student, which may have fewer classes, should have it."""
        return quality


@TASK_UTILS.register_module()
class DenseCenternessAlignment(DenseQualityAlignment):
    """Pairs the centerness of two heads (FCOS, ATSS), or their estimate of the IoU (PAA, DDOD).

    Arguments as :class:`DenseAlignment`.
    """

    qualities = (CENTERNESS, IOU)


@TASK_UTILS.register_module()
class DenseObjectnessAlignment(DenseQualityAlignment):
    """Pairs the objectness of two heads (YOLOX, AutoAssign).

    Such a head scores a class as if there were an object, so that class scores alone do not tell a student
    without labels where to look. A teacher of more classes calls all of them objects: the student learns the
    share of its objectness that its own classes have, the score of the teacher's top-scoring shared class
    over that of its top-scoring class.

    Args:
        confidence: As :class:`DenseAlignment`; default False, since the background must be learnt too.
        others: As there.
    """

    qualities = (OBJECTNESS,)
    estimated_everywhere = True

    def __init__(self, confidence: bool = False, **others: Any) -> None:
        super().__init__(confidence=confidence, **others)

    def for_shared_classes(self, quality: Tensor, teacher: DenseOutput, step: Step) -> Tensor:
        if step.class_map.excludes:
            raise ConfigError(
                f'{type(self).__name__}: the teacher cannot tell where objects of class_map.exclude are; '
                f'leave objectness to the labels'
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

    Boxes are corners x1, y1, x2, y2 in fractions of image width and height, so heads that code them
    in different ways (deltas, distances, distributions) can be compared, if they predict equally many
    per position. Arguments as :class:`DenseAlignment`.
    """

    box_format = 'xyxy'
    same_anchors = False

    def __call__(self, student: Any, teacher: Any, step: Step) -> list[Pair]:
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
    """Pairs the box-edge distributions of generalised focal heads, one row per edge.

    Zheng et al.: Localization Distillation for Dense Object Detection, CVPR 2022 (arXiv 2102.12252):
    with ``KLDivergence`` at a high temperature. The paper compares where labels place an object
    (``select='labels'``); the default is the teacher's confidence. Arguments as :class:`DenseAlignment`.
    """

    activation = 'softmax'

    def check(self, student: Detector, teacher: Detector, options: dict[str, Any]) -> None:
        super().check(student, teacher, options)
        bins = [
            head.reg_max if dense_head(head).coding == 'distribution' else None
            for head in (student.bbox_head, teacher.bbox_head)
        ]
        if bins[1] is None or (self.crossed is None and bins[0] != bins[1]):
            raise ConfigError(
                f'{type(self).__name__} pairs heads that give each edge of a box a distribution '
                f'(GFLHead) over equally many numbers; reg_max is {bins[0]} (student) and {bins[1]} '
                f'(teacher)'
            )

    def __call__(self, student: Any, teacher: Any, step: Step) -> list[Pair]:
        bins = step.teacher.bbox_head.reg_max + 1
        outputs = self.outputs(student, teacher, step)
        ours, theirs = (
            torch.cat([each.permute(0, 2, 3, 1).reshape(-1, bins) for each in output.box_maps()])
            for output in outputs
        )
        return [self.pair(outputs, ours.float(), theirs.float(), step, rows_per_prior=4)]
