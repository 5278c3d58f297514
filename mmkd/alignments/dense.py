"""Outputs of dense heads at the same places."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.models.dense_heads import YOLOXHead
from mmdet.registry import TASK_UTILS
from mmdet.utils import reduce_mean
from torch import Tensor, nn

from ..errors import ConfigError
from ..families.single_stage import SingleStage, boxes_of, layers_at, run_from
from ..recorder import Source
from .base import (
    Alignment,
    Pair,
    Step,
    common_strides,
    require_same_shape,
    strides_and_scale,
    strides_of,
    weights_of_stored,
)
from .features import labelled_boxes, levels_of
from .valuable_region import valuable_region

# Class scores of each level first, box outputs second, whatever else the head gives after them.
HEAD = Source('bbox_head')
# mmdet hands its classification loss the labels of the priors second, level by level.
LABELS = Source('bbox_head.loss_cls', capture='input', index=1)
SELECTIONS = ('all', 'labels', 'valuable')
CONFIDENCE = 'confidence'
TINY = 1e-6  # of a probability whose logarithm is taken


class DenseAlignment(Alignment):
    """Base of the alignments below: priors (anchors or points) that both heads have.

    Levels are paired by stride; at a common level the priors must be the same. Strides and anchors of a
    teacher that sees larger images (``teacher.scale``) are measured in the student's pixels.

    Args:
        select: ``all`` priors; those to which the ``labels`` give an object, as the student's own losses
            have it; or, of anchors, the ``valuable`` ones around objects, each counted by its overlap
            (:func:`mmkd.alignments.valuable_region.valuable_region`).
        confidence: Weight each prior by the teacher's probability of its likeliest shared class (of
            YOLOX times that of an object at all). Most priors show none; with False all count alike.
        num_priors: Compare only so many priors a batch, those of which the teacher is surest. None for
            all.
        crossed: The teacher's layer, e.g. ``bbox_head.cls_convs.2.gn``, in whose place the student's
            recorded maps go. What is compared with the teacher's prediction is then what the rest of
            its head makes of them (Wang et al.: CrossKD, CVPR 2024, arXiv 2306.11369, sec. 3.2), so
            that the student's own prediction is left to the labels. The maps are brought to the
            teacher's mean and deviation in each channel first, as in the code published with it.
        normalizer: What the sum over priors is divided by, in place of their number or the sum of
            their weights: a number; or what the student records, e.g. the number of objects its own
            loss divides by, ``dict(module='bbox_head.loss_cls', capture='input', index='avg_factor')``;
            or ``confidence``, the teacher's summed over all priors (as of ``confidence``, and at least 1),
            which says how much it sees without labels.
    """

    default_module = 'bbox_head'
    needs_class_map = True
    #: Which part of the head's output is compared.
    part = 0
    #: Whether a cached teacher has an estimate of it at priors that are not stored, too.
    stored_everywhere = False
    #: Whether priors must be the same, not only as many a place.
    same_anchors = True

    def __init__(
        self,
        select: str = 'all',
        confidence: bool = True,
        num_priors: int | None = None,
        crossed: str | None = None,
        normalizer: float | dict[str, Any] | None = None,
    ) -> None:
        if num_priors is not None and num_priors < 1:
            raise ConfigError(f'align.num_priors={num_priors} must be at least 1')
        if select not in SELECTIONS:
            raise ConfigError(f"align.select='{select}' is none of {SELECTIONS}")
        if isinstance(normalizer, (int, float)) and normalizer <= 0:
            raise ConfigError(f'align.normalizer={normalizer} must be above 0')
        if crossed is not None and not crossed.startswith('bbox_head.'):
            raise ConfigError(f"align.crossed='{crossed}' is no layer of the teacher's bbox_head")
        self.select = select
        self.confidence = confidence
        self.num_priors = num_priors
        self.crossed = None if crossed is None else Source(crossed, copy=True)
        if isinstance(normalizer, dict) or (
            isinstance(normalizer, str) and normalizer != CONFIDENCE
        ):
            normalizer = Source.parse(normalizer)
        self.normalizer: float | str | Source | None = normalizer
        self.levels: list[tuple[int, int]] = []
        self.scale = 1.0

    @property
    def reduces_over_ranks(self) -> bool:
        return self.normalizer is None  # else the same number divides on all, as mmdet's avg_factor

    @property
    def runs_teacher_layers(self) -> bool:
        return self.crossed is not None

    @property
    def can_average_teachers(self) -> bool:
        return self.num_priors is None and self.crossed is None

    @property
    def student_sources(self) -> list[Source]:
        sources = [self.normalizer] if isinstance(self.normalizer, Source) else []
        return sources + [LABELS] * (self.select == 'labels')

    @property
    def teacher_sources(self) -> list[Source]:
        return [HEAD] + [self.crossed] * (self.crossed is not None)

    def check(self, student: nn.Module, teacher: nn.Module, options: dict[str, Any]) -> None:
        generators = []
        for owner, model in (('student', student), ('teacher', teacher)):
            if not SingleStage.covers(model) or not hasattr(model.bbox_head, 'cls_out_channels'):
                raise ConfigError(
                    f'{type(self).__name__} pairs dense heads; the {owner}, a '
                    f'{type(model).__name__}, has none that gives a score a class at each prior'
                )
            generators.append(model.bbox_head.prior_generator)
        self.scale = options.get('scale', 1.0)
        self.levels = common_strides(*generators, self.scale)
        if not self.levels:
            raise ConfigError(
                f'the heads have no common level: {strides_and_scale(*generators, self.scale)}'
            )
        if self.select == 'valuable' and not hasattr(generators[1], 'base_anchors'):
            raise ConfigError(
                f"align.select='valuable' is about anchors, and a {type(teacher).__name__} has points"
            )
        if self.crossed is not None and options.get('cached'):
            raise ConfigError(
                "align.crossed runs the teacher's head on the student's maps, for which its "
                'weights are needed; '
                'train with the teacher itself (without teacher.cache)'
            )
        if self.crossed is not None:
            layers_at(teacher.bbox_head, _in_head(self.crossed))
            ours, theirs = (strides_of(generator) for generator in generators)
            if self.scale != 1:
                raise ConfigError(
                    f"align.crossed: the teacher's head cannot take the student's maps for those of images "
                    f'{self.scale:g} times as large; set teacher.scale=1'
                )
            if ours != theirs:
                raise ConfigError(
                    f"align.crossed: the teacher's head takes maps of strides {theirs}, the student has "
                    f'{ours}'
                )
        if self.crossed is None or self.select != 'all':
            for index, other in self.levels:
                self._require_same_priors(*generators, index, other)
        softmax = [uses_softmax(model) for model in (student, teacher)]
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
                both = ours is not None and theirs is not None
                same = both and torch.allclose(ours[index], theirs[other] / self.scale)
        if not same:
            raise ConfigError(
                f'at stride {strides_of(student)[index]} the heads have different priors '
                f'({counts[0]} a place of {type(student).__name__}, the teacher {counts[1]} of '
                f'{type(teacher).__name__}); give both the same, or compare features'
            )

    def sides(
        self, student: Any, teacher: Any, step: Step
    ) -> tuple[tuple[Any, str, nn.Module], tuple[Any, str, nn.Module]]:
        """What is compared, as arguments of :meth:`maps`: the output, whose it is, whose head gave it."""
        theirs = (teacher, 'teacher', step.teacher)
        if self.crossed is None:
            return (student, 'student', step.student), theirs
        ours = levels_of(student, 'student')
        wanted = levels_of(step.teacher_record[self.crossed], 'teacher')
        if [level.shape for level in ours] != [level.shape for level in wanted]:
            shapes = [[tuple(level.shape) for level in levels] for levels in (ours, wanted)]
            raise ConfigError(
                f"the student's maps {shapes[0]} cannot take the place of the teacher's {shapes[1]}; where "
                f"channels differ, add connector=dict(type='ConvConnector', …)"
            )
        key = ('crossed', self.crossed, *map(id, ours))
        if key not in step.memo:
            scaled = [_like(level, other) for level, other in zip(ours, wanted, strict=True)]
            output = run_from(step.teacher.bbox_head, _in_head(self.crossed), scaled)
            step.memo[key] = (
                ours,
                output,
            )  # with the maps, so that none takes the place of a freed one
        return (step.memo[key][1], 'student', step.teacher), theirs

    def run_teacher_layers(self, student: Any, step: Step) -> list[Tensor]:
        if self.crossed is None:
            return []
        ours, _ = self.sides(student, step.teacher_record[HEAD], step)
        return [level for _, level in self.maps(*ours)]

    def maps(
        self, value: Any, owner: str, model: nn.Module, part: int | None = None
    ) -> list[tuple[int, Tensor]]:
        """An output of a head at the common levels.

        Args:
            value: The recorded output: the head's, or one of its parts, level by level.
            owner: Whose it is.
            model: Whose head gave it.
            part: Which of the head's outputs; by default the one compared.

        Returns:
            Indices of levels and their maps, shape (N, numbers, H, W).
        """
        if isinstance(value, (tuple, list)) and value and isinstance(value[0], (tuple, list)):
            value = value[self.part if part is None else part]
        strides = strides_of(model.bbox_head.prior_generator)
        fits = isinstance(value, (tuple, list)) and len(value) == len(strides)
        if not fits or not all(isinstance(v, Tensor) and v.dim() == 4 for v in value):
            raise ConfigError(
                f"the {owner}'s recorded output is not one map a level of its {len(strides)}; record "
                f'bbox_head'
            )
        own = 0 if owner == 'student' else 1
        return [(pair[own], value[pair[own]]) for pair in self.levels]

    def rows(
        self, value: Any, owner: str, model: nn.Module, width: int, part: int | None = None
    ) -> Tensor:
        """The same, a row a prior, shape (priors of all images and levels, width)."""
        rows = []
        for _, level in self.maps(value, owner, model, part):
            if level.shape[1] % width:
                raise ConfigError(
                    f"the {owner}'s recorded output has {level.shape[1]} channels, no multiple of "
                    f'{width}; record bbox_head'
                )
            rows.append(level.permute(0, 2, 3, 1).reshape(-1, width))
        return torch.cat(rows).float()

    def weights_and_indices(self, step: Step, count: int) -> tuple[Tensor | None, Tensor | None]:
        """How much each of ``count`` priors counts, shape (count,), and the indices of those compared.

        None for all alike, and None for all.
        """
        weight = chosen = confidence = None
        if self.confidence or self.num_priors is not None:
            confidence = self._confidence(step)
        if self.confidence:
            weight = confidence
        if self.select != 'all':
            valuable = self.select == 'valuable'
            own = self._valuable(step) if valuable else self._labelled(step, count)
            weight = own if weight is None else weight * own
        if self.num_priors is not None and self.num_priors < len(confidence):
            chosen = confidence.topk(self.num_priors).indices
        return weight, chosen

    def _confidence(self, step: Step) -> Tensor:
        key = ('dense confidence', tuple(self.levels))
        if key not in step.memo:
            softmax, width = uses_softmax(step.teacher), step.teacher.bbox_head.cls_out_channels
            scores = self.rows(step.teacher_record[HEAD], 'teacher', step.teacher, width, part=0)
            scores = step.class_map.teacher_logits(scores, softmax)
            probability = scores.softmax(-1)[..., :-1] if softmax else scores.sigmoid()
            step.memo[key] = probability.amax(-1)
            if isinstance(step.teacher.bbox_head, YOLOXHead):
                # Its class scores say which object, if there is one; that, another output says.
                there = self.rows(step.teacher_record[HEAD], 'teacher', step.teacher, 1, part=2)
                step.memo[key] = step.memo[key] * there[:, 0].sigmoid()
        return step.memo[key]

    def _labelled(self, step: Step, count: int) -> Tensor:
        """1 for priors to which the student's losses give an object, else 0."""
        calls = step.student_record[LABELS]
        calls = calls if isinstance(calls, list) else [calls]
        labels = [call[0] if isinstance(call, (tuple, list)) else call for call in calls]
        labels = torch.cat([each.flatten() for each in labels])
        if len(labels) != count:
            raise ConfigError(
                f"align.select='labels': {type(step.student.bbox_head).__name__} hands its classification "
                f'loss {len(labels)} labels, but has {count} priors in common with the teacher'
            )
        return ((labels >= 0) & (labels < step.student.bbox_head.num_classes)).float()

    def _valuable(self, step: Step) -> Tensor:
        key = ('valuable region', tuple(self.levels))
        if key not in step.memo:
            generator = step.teacher.bbox_head.prior_generator
            maps = self.maps(step.teacher_record[HEAD], 'teacher', step.teacher)
            device = maps[0][1].device
            anchors = [
                generator.single_level_grid_priors(level.shape[2:], index, device=device)
                / level.new_tensor(step.scale).repeat(2)
                for index, level in maps
            ]
            boxes, image = labelled_boxes(step, device)
            values = valuable_region(anchors, boxes, image, len(step.data_samples))
            step.memo[key] = torch.cat([value.flatten() for value in values])
        return step.memo[key]

    def pair(self, student: Tensor, teacher: Tensor, step: Step, of_each: int = 1) -> Pair:
        """The priors that are compared; ``of_each`` rows belong to one prior."""
        require_same_shape(student, teacher, 'priors')
        weight, chosen = self.weights_and_indices(step, len(student) // of_each)
        total, stored = None, self._stored(step)
        if chosen is not None:
            student, teacher = (
                side.reshape(-1, of_each, side.shape[-1])[chosen].flatten(0, 1)
                for side in (student, teacher)
            )
            weight, stored = (None if each is None else each[chosen] for each in (weight, stored))
        if stored is not None:
            weight, total = weights_of_stored(weight, stored)
        if self.normalizer is not None:
            total = self._normalizer(step)
        if weight is not None and of_each > 1:
            weight = weight.repeat_interleave(of_each)
        return Pair(student, teacher, weight, total=None if total is None else total * of_each)

    def _stored(self, step: Step) -> Tensor | None:
        """1 for priors that a cached teacher has stored, else 0; None for all."""
        masks = None if self.stored_everywhere else step.stored_masks(HEAD)
        if masks is None:
            return None
        masks = [masks[other] for _, other in self.levels]
        return torch.cat([mask.permute(0, 2, 3, 1).flatten() for mask in masks]).float()

    def _normalizer(self, step: Step) -> Tensor | float:
        if self.normalizer == CONFIDENCE:
            return reduce_mean(self._confidence(step).sum()).clamp(min=1.0)
        if not isinstance(self.normalizer, Source):
            return self.normalizer
        if self.normalizer not in step.student_record:
            return 1.0  # FCOS does not come to its box loss where an image shows nothing
        found = step.student_record[self.normalizer]
        return found[0] if isinstance(found, list) else found  # each level is told the same


@TASK_UTILS.register_module()
class DenseClassAlignment(DenseAlignment):
    """Pairs the class scores of two dense heads, one row a prior.

    Scores of objectness or centredness, where a head has them, are not part of it.

    Args:
        activation: Which activation a loss may take the scores for; by default the head's own. The
            scores of a sigmoid head can also be compared as a softmax over the classes.
        others: As :class:`DenseAlignment`.
    """

    stored_everywhere = True

    def __init__(self, activation: str | None = None, **others: Any) -> None:
        super().__init__(**others)
        self._given_activation = activation

    def check(self, student: nn.Module, teacher: nn.Module, options: dict[str, Any]) -> None:
        super().check(student, teacher, options)
        own = 'softmax' if uses_softmax(teacher) else 'sigmoid'
        self.activation = self._given_activation or own

    def __call__(self, student: Any, teacher: Any, step: Step) -> list[Pair]:
        scores = []
        for value, owner, model in self.sides(student, teacher, step):
            own = step.class_map.student_logits
            if model is step.teacher:
                own = step.class_map.teacher_logits
            rows = self.rows(value, owner, model, model.bbox_head.cls_out_channels)
            scores.append(own(rows, uses_softmax(model)))
        return [self.pair(*scores, step)]


@TASK_UTILS.register_module()
class DenseCenternessAlignment(DenseAlignment):
    """Pairs the scores of centredness of two heads (FCOS, ATSS), one row of one number a prior.

    Arguments as :class:`DenseAlignment`.
    """

    part = 2
    activation = 'sigmoid'

    def check(self, student: nn.Module, teacher: nn.Module, options: dict[str, Any]) -> None:
        super().check(student, teacher, options)
        for owner, model in (('student', student), ('teacher', teacher)):
            if not hasattr(model.bbox_head, 'loss_centerness'):
                raise ConfigError(
                    f'{type(self).__name__}: the {owner}, a {type(model).__name__}, has no score of '
                    f'centredness'
                )

    def __call__(self, student: Any, teacher: Any, step: Step) -> list[Pair]:
        ours, theirs = (
            self.rows(value, owner, model, width=1)
            for value, owner, model in self.sides(student, teacher, step)
        )
        return [self.pair(ours, theirs, step)]


@TASK_UTILS.register_module()
class DenseObjectnessAlignment(DenseAlignment):
    """Pairs the objectness of two YOLOX heads, one row of one number a prior, before a sigmoid.

    A YOLOX head scores a class as if there were an object, so that class scores alone leave a student
    without labels ignorant of where to look. A teacher of more classes calls all of them objects: of its
    objectness the student is taught the share that its own classes have, the score of the teacher's
    likeliest shared class over that of its likeliest of all.

    Args:
        confidence: As :class:`DenseAlignment`; by default not, since the background must be learnt too.
        others: As there.
    """

    part = 2
    activation = 'sigmoid'
    stored_everywhere = True

    def __init__(self, confidence: bool = False, **others: Any) -> None:
        super().__init__(confidence=confidence, **others)

    def check(self, student: nn.Module, teacher: nn.Module, options: dict[str, Any]) -> None:
        super().check(student, teacher, options)
        for owner, model in (('student', student), ('teacher', teacher)):
            if not isinstance(model.bbox_head, YOLOXHead):
                raise ConfigError(
                    f'{type(self).__name__}: the {owner}, a {type(model).__name__}, has no score of '
                    f'objectness'
                )

    def __call__(self, student: Any, teacher: Any, step: Step) -> list[Pair]:
        if step.class_map.excludes:
            raise ConfigError(
                f'{type(self).__name__}: the teacher cannot say where objects of class_map.exclude are; '
                f'leave objectness to the labels'
            )
        ours, theirs = (
            self.rows(value, owner, model, width=1)
            for value, owner, model in self.sides(student, teacher, step)
        )
        if step.class_map.left_over:
            share = self._share(step)[:, None]
            theirs = (theirs.sigmoid() * share).clamp(TINY, 1 - TINY).logit()
        return [self.pair(ours, theirs, step)]

    def _share(self, step: Step) -> Tensor:
        """Which share of an object is one of the student's classes, shape (priors,)."""
        width = step.teacher.bbox_head.cls_out_channels
        scores = self.rows(step.teacher_record[HEAD], 'teacher', step.teacher, width, part=0)
        known = step.class_map.teacher_logits(scores, softmax=False)
        return known.sigmoid().amax(-1) / scores.sigmoid().amax(-1)


@TASK_UTILS.register_module()
class DenseBoxAlignment(DenseAlignment):
    """Pairs the decoded boxes of two dense heads, one row a prior.

    Boxes are corners x1, y1, x2, y2 in fractions of image width and height, so heads that code them
    in different ways (deltas, distances, distributions) can be compared, if they predict equally many
    at a place. Arguments as :class:`DenseAlignment`.
    """

    part = 1
    box_format = 'xyxy'
    same_anchors = False

    def __call__(self, student: Any, teacher: Any, step: Step) -> list[Pair]:
        sides = []
        size = [sample.metainfo['img_shape'][1::-1] for sample in step.data_samples]
        for value, owner, model in self.sides(student, teacher, step):
            boxes = [
                boxes_of(model.bbox_head, index, level)
                for index, level in self.maps(value, owner, model)
            ]
            whole = boxes[0].new_tensor(size)
            if model is step.teacher:
                whole = whole * whole.new_tensor(step.scale)
            whole = whole.repeat(1, 2)[:, None]
            sides.append(torch.cat([(level / whole).flatten(0, 1) for level in boxes]))
        return [self.pair(*sides, step)]


@TASK_UTILS.register_module()
class DenseDistributionAlignment(DenseAlignment):
    """Pairs the distributions of box edges that generalised focal heads give, one row an edge.

    Zheng et al.: Localization Distillation for Dense Object Detection, CVPR 2022 (arXiv 2102.12252):
    with ``KLDivergence`` at a high temperature. The paper compares where labels say that an object is
    near (``select='labels'``); by default the teacher's confidence says so. Arguments as
    :class:`DenseAlignment`.
    """

    part = 1
    activation = 'softmax'

    def check(self, student: nn.Module, teacher: nn.Module, options: dict[str, Any]) -> None:
        super().check(student, teacher, options)
        bins = [getattr(model.bbox_head, 'reg_max', None) for model in (student, teacher)]
        if bins[1] is None or (self.crossed is None and bins[0] != bins[1]):
            raise ConfigError(
                f'{type(self).__name__} pairs heads that give each edge of a box a distribution '
                f'(GFLHead) over equally many numbers; reg_max is {bins[0]} (student) and {bins[1]} '
                f'(teacher)'
            )

    def __call__(self, student: Any, teacher: Any, step: Step) -> list[Pair]:
        bins = step.teacher.bbox_head.reg_max + 1
        sides = self.sides(student, teacher, step)
        ours, theirs = (self.rows(*side, 4 * bins).reshape(-1, bins) for side in sides)
        return [self.pair(ours, theirs, step, of_each=4)]


def uses_softmax(model: nn.Module) -> bool:
    """Whether a dense head's classifier is a softmax with background."""
    return not getattr(model.bbox_head, 'use_sigmoid_cls', True)


def _in_head(layer: Source) -> str:
    return layer.module.removeprefix('bbox_head.')


def _like(ours: Tensor, theirs: Tensor) -> Tensor:
    """Maps with the mean and standard deviation of others in each channel, over all images and places."""
    axes, single = (0, 2, 3), ours.numel() == ours.shape[1]
    (std, mean), (wanted_std, wanted_mean) = (
        torch.std_mean(side.float(), axes, correction=0 if single else 1, keepdim=True)
        for side in (ours, theirs)
    )
    # In one go: what autograd keeps between steps would be as large as the maps.
    scale = wanted_std / (std + 1e-6)
    return torch.addcmul(wanted_mean - mean * scale, ours.float(), scale)
