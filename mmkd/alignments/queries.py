"""Alignments of decoder queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.registry import TASK_UTILS
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from torch import Tensor

from ..errors import ConfigError
from ..families.class_scores import class_probabilities, scores_for_sigmoid, uses_softmax
from ..families.transformer import is_transformer, num_queries, queries_from_image, query_form
from ..recorder import Source
from ..types import Detector
from .base import Alignment, Pair, Step, require_choice, require_same_shape
from .decoder_layers import layer_map
from .query_matching import Candidates, CostWeights, match

# Class scores and boxes (cx, cy, w, h in fractions of the image) for all decoder layers.
HEAD = Source('bbox_head')
# The query embeddings of all decoder layers, which are the input of the head.
QUERIES = Source('bbox_head', capture='input', index=0)
COMPARED = ('class', 'box', 'embedding')
BOX_FORMATS = ('cxcywh', 'xyxy')
# Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020 (arXiv 2005.12872), sec. 3.1:
# no-object terms are down-weighted by a factor of 10.
NO_OBJECT_WEIGHT = 0.1


class QueryAlignment(Alignment):
    """Base class of the three alignments below: pairs decoder queries, one row per query.

    Denoising queries are left out. If the decoders have different numbers of layers, a layer of the
    student is paired with the teacher's layer at the same relative depth, and the last with the last
    (:func:`mmkd.alignments.layer_map`).

    Two softmax heads are compared with a softmax. If one of the heads uses sigmoids, the scores of a
    softmax head are converted: a sigmoid then returns the same probability of each class. Every class is
    then compared on its own.

    The weight of a query is :math:`f + (1 - f) w`, with the teacher's probability :math:`f` of its most
    probable shared class and the no-object weight :math:`w`. With :math:`w = 0` this is the foreground
    rebalance weight of KD-DETR (arXiv 2211.08071). With 1 all queries have the same weight.

    Args:
        of: The values to compare: ``class`` scores, ``box`` coordinates or query ``embedding``. By default,
            scores or boxes are selected from the output of ``bbox_head``. The default for embeddings is its
            input, ``dict(module='bbox_head', capture='input', index=0)``.
        layers: ``all`` decoder layers, the ``last`` one, a list of student layers (from 0; -1 is the last),
            or a list of [student layer, teacher layer].
        no_object_weight: The :math:`w` above. Default: DETR's factor 0.1 for classes; 0 for boxes and
            embeddings, which have no meaning without an object.
        box_format: ``cxcywh`` in fractions of the image, as the heads return it; or ``xyxy``, which
            ``GIoU`` needs.
    """

    default_module = 'bbox_head'
    needs_class_map = True
    reduces_over_ranks = True

    def __init__(
        self,
        of: str = 'class',
        layers: str | Sequence = 'all',
        no_object_weight: float | None = None,
        box_format: str = 'cxcywh',
    ) -> None:
        require_choice('of', of, COMPARED)
        require_choice('box_format', box_format, BOX_FORMATS)
        if no_object_weight is None:
            no_object_weight = NO_OBJECT_WEIGHT if of == 'class' else 0.0
        if not 0 <= no_object_weight <= 1:
            raise ConfigError(f'align.no_object_weight: must be in [0, 1], got {no_object_weight}')
        self.of = of
        self.layers = layers
        self.no_object_weight = no_object_weight
        self.box_format = box_format if of == 'box' else None
        self.layer_pairs: list[tuple[int, int]] = []

    @property
    def can_average_teachers(self) -> bool:
        """False: the queries depend on the teacher."""
        return False

    def default_source(self, owner: str, model: Detector) -> Source:
        """Return the output of ``bbox_head``, or its input for embeddings."""
        return QUERIES if self.of == 'embedding' else HEAD

    @property
    def teacher_sources(self) -> list[Source]:
        """The output of ``bbox_head``, for the weights of queries."""
        return [HEAD]

    def check(self, student: Detector, teacher: Detector, options: dict[str, Any]) -> None:
        """Check that both models have decoder queries, and pair their layers; see :meth:`Alignment.check`."""
        for owner, model in (('student', student), ('teacher', teacher)):
            if not is_transformer(model):
                raise ConfigError(
                    f'align: {type(self).__name__} needs decoder queries that mmkd can run, but the {owner}, '
                    f'a {type(model).__name__}, has none; distil features '
                    f"(align=dict(type='FeatureAlignment') or 'EncoderMemoryAlignment')"
                )
        counts = student.decoder.num_layers, teacher.decoder.num_layers
        self.layer_pairs = layer_map(*counts, self.layers)
        if self.of == 'class':
            both = uses_softmax(student.bbox_head) and uses_softmax(teacher.bbox_head)
            self.activation = 'softmax' if both else 'sigmoid'

    def pairing(self, step: Step) -> tuple[Tensor, Tensor] | None:
        """Return the corresponding queries of the step.

        Returns:
            Indices of student and teacher queries, shape (layers, N, pairs) each. None if the queries of
            both models are in the same order.
        """
        return None

    def __call__(self, student: Any, teacher: Any, step: Step) -> list[Pair]:
        """Pair the selected values of the queries; embeddings give one pair per layer."""
        ours = self.layer_values(student, step.student, 'student')
        theirs = self.layer_values(teacher, step.teacher, 'teacher')
        weight = self.weight(step)
        pairing = self.pairing(step)
        if pairing is not None:
            ours, theirs = _take_queries(ours, pairing[0]), _take_queries(theirs, pairing[1])
            weight = None if weight is None else weight.gather(2, pairing[1])
        if self.of == 'class':
            ours, theirs = comparable_scores(ours.float(), theirs.float(), step)
        elif self.of == 'box':
            ours, theirs = ours.float(), theirs.float()
            if self.box_format == 'xyxy':
                ours, theirs = bbox_cxcywh_to_xyxy(ours), bbox_cxcywh_to_xyxy(theirs)
        hint = ''
        if self.of == 'embedding':
            hint = (
                f"; add connector=dict(type='LinearConnector', in_channels={ours.shape[-1]}, "
                f'out_channels={theirs.shape[-1]})'
            )
        require_same_shape(ours, theirs, f'{self.of} (layers, images, queries, width)', hint)
        if self.of == 'embedding':  # one pair per layer: other layers must not provide negatives
            weights = weight if weight is not None else [None] * len(ours)
            return [
                Pair(a.flatten(0, 1), b.flatten(0, 1), None if w is None else w.flatten())
                for a, b, w in zip(ours, theirs, weights, strict=True)
            ]
        weight = None if weight is None else weight.flatten()
        return [Pair(ours.flatten(0, 2), theirs.flatten(0, 2), weight)]

    def layer_values(self, value: Any, model: Detector, owner: str) -> Tensor:
        """Return a recorded output at the selected layers, shape (layers, N, queries, width).

        Raises:
            ConfigError: The output has another form.
        """
        tensors = isinstance(value, (tuple, list)) and all(isinstance(v, Tensor) for v in value)
        if tensors and len(value) == 2 and self.of != 'embedding' and value[0].dim() == 4:
            value = value[COMPARED.index(self.of)]  # the head's output: classes and boxes
        elif tensors and len({v.shape for v in value}) == 1 and value[0].dim() == 3:
            value = torch.stack(list(value))  # the layers share this branch
        depth, count = model.decoder.num_layers, num_queries(model)
        what = (
            "dict(module='bbox_head', capture='input', index=0)"
            if self.of == 'embedding'
            else 'bbox_head'
        )
        if not isinstance(value, Tensor) or value.dim() != 4 or value.shape[0] != depth:
            kind = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(
                f'{owner}: the recorded output must have the shape (layers, images, queries, width) with '
                f'{depth} decoder layers, got {kind}; record {what}'
            )
        if self.of == 'box' and value.shape[-1] != 4:
            raise ConfigError(
                f'{owner}: the recorded output must be boxes, got shape {tuple(value.shape)}; record {what}'
            )
        value = self._layers(value, 0 if owner == 'student' else 1)
        return value if self.joint else value[:, :, -count:]  # denoising queries come first

    def _layers(self, value: Tensor, side: int) -> Tensor:
        """Select the layers to compare of the student's (side 0) or the teacher's (side 1) value."""
        chosen = [pair[side] for pair in self.layer_pairs]
        # Indexing copies the tensor, and the list to the device: avoid it if all layers are selected.
        return value if chosen == list(range(len(value))) else value[chosen]

    def weight(self, step: Step) -> Tensor | None:
        """Return the weight of each query of the teacher, shape (layers, N, queries); None: equal weights."""
        if self.no_object_weight == 1:
            return None
        confidence = self.confidence(step)
        return confidence + (1 - confidence) * self.no_object_weight

    def confidence(self, step: Step) -> Tensor:
        """Return the teacher's highest probability of a shared class, shape (layers, N, queries)."""
        key = ('confidence', self.joint, tuple(self.layer_pairs))
        if key not in step.memo:
            scores = self._layers(step.teacher_record[HEAD][0], 1)
            softmax = uses_softmax(step.teacher.bbox_head)
            scores = step.class_map.teacher_logits(scores.float(), softmax)
            step.memo[key] = class_probabilities(scores, softmax).amax(-1)
        return step.memo[key]


@TASK_UTILS.register_module()
class HungarianQueryAlignment(QueryAlignment):
    r"""Pairs queries by Hungarian matching of their predictions, in each decoder layer and image.

    The matching is one-to-one as in DETR (Carion et al., ECCV 2020, arXiv 2005.12872, sec. 3.1), with the
    teacher's predictions instead of labels, as in the Hungarian-matching logits distillation of DETRDistill
    (Chang et al., ICCV 2023, arXiv 2211.10156). The cost of a teacher query :math:`t` and a student query
    :math:`s` is

    .. math:: w_t (-\lambda_{cls} \sum_c p_t(c) p_s(c) + \lambda_{L1} |b_t - b_s|_1
        + \lambda_{giou} (1 - GIoU(b_t, b_s)))

    with the weight :math:`w_t` of :class:`QueryAlignment` for DETR's no-object factor 0.1. Differences to
    DETRDistill: soft class probabilities instead of the most probable class, and the weights :math:`w_t`
    instead of a separate treatment of the teacher's positive and negative queries.

    If the teacher has more queries than the student, its most confident queries are paired. If it has
    fewer, the other queries of the student are trained by the labels only. All costs of a step are copied
    to the host once; entries with the same costs and layers share the matching.

    Args:
        cost_class: :math:`\lambda_{cls}`. The defaults of all costs are DETR's (sec. A.4).
        cost_l1: :math:`\lambda_{L1}`, for boxes (cx, cy, w, h) in fractions of the image.
        cost_giou: :math:`\lambda_{giou}`.
        num_queries: Largest number of teacher queries to pair; the most confident are used.
        options: Arguments of :class:`QueryAlignment`.

    Examples:
        >>> from mmdet.registry import TASK_UTILS
        >>> import mmkd
        >>> align = TASK_UTILS.build(dict(type='HungarianQueryAlignment', of='box', box_format='xyxy'))
        >>> align.cost_weights
        CostWeights(classes=1.0, l1=5.0, giou=2.0)
        >>> align.no_object_weight, str(align.default_source('student', None))
        (0.0, 'bbox_head')
    """

    def __init__(
        self,
        *,
        cost_class: float = 1.0,
        cost_l1: float = 5.0,
        cost_giou: float = 2.0,
        num_queries: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if min(cost_class, cost_l1, cost_giou) < 0 or not max(cost_class, cost_l1, cost_giou):
            raise ConfigError(
                f'align.cost_class: costs must not be negative, and not all 0, got {cost_class}, '
                f'{cost_l1} (cost_l1) and {cost_giou} (cost_giou)'
            )
        if num_queries is not None and num_queries < 1:
            raise ConfigError(f'align.num_queries: must be at least 1, got {num_queries}')
        self.cost_weights = CostWeights(cost_class, cost_l1, cost_giou)
        self.num_queries = num_queries

    @property
    def student_sources(self) -> list[Source]:
        """The output of ``bbox_head``, for the matching."""
        return [HEAD]

    def pairing(self, step: Step) -> tuple[Tensor, Tensor]:
        """Match the queries; computed once per step for entries with the same costs and layers."""
        key = ('matching', self.cost_weights, self.num_queries, tuple(self.layer_pairs))
        if key not in step.memo:
            candidates, theirs = self.candidates(step)
            ours = match(candidates, self.cost_weights)
            step.memo[key] = ours.to(theirs.device, non_blocking=True), theirs
        return step.memo[key]

    @torch.no_grad()
    def candidates(self, step: Step) -> tuple[Candidates, Tensor]:
        """Return the queries to match, and the indices of the teacher's queries, shape (layers, N, pairs)."""
        (scores, boxes), (their_scores, their_boxes) = (
            tuple(self._layers(value, side)[:, :, -num_queries(model) :] for value in record[HEAD])
            for side, (model, record) in enumerate(
                ((step.student, step.student_record), (step.teacher, step.teacher_record))
            )
        )
        confidence = self.confidence(step)
        most = min(self.num_queries or confidence.shape[2], confidence.shape[2], scores.shape[2])
        if most < confidence.shape[2]:
            theirs = confidence.topk(most, 2).indices
            their_scores, their_boxes = (
                _take_queries(their_scores, theirs),
                _take_queries(their_boxes, theirs),
            )
            confidence = confidence.gather(2, theirs)
        else:
            theirs = torch.arange(most, device=scores.device).expand_as(confidence)
        scores, their_scores = comparable_scores(scores.float(), their_scores.float(), step)
        softmax = _both_use_softmax(step)
        p, q = (s.softmax(-1) if softmax else s.sigmoid() for s in (their_scores, scores))
        weights = confidence + (1 - confidence) * NO_OBJECT_WEIGHT
        return Candidates(p, q, their_boxes.float(), boxes.float(), weights), theirs


@TASK_UTILS.register_module()
class SharedQueryAlignment(QueryAlignment):
    """Pairs the outputs of both decoders for the same queries. No matching is needed.

    Wang et al., "KD-DETR", CVPR 2024 (arXiv 2211.08071). The queries are the teacher's own (the paper's
    specific distillation points) and random queries (its general points), drawn anew in each step by
    :class:`mmkd.families.Transformer`. ``teacher=dict(random_queries=…)`` sets their number.

    The student's decoder runs once more for these queries. Its own queries, labels and predictions do not
    change. Both models must accept the same queries: they must be detectors of the same kind and, unless
    queries are anchors (DAB-DETR), of the same width.

    The arguments are those of :class:`QueryAlignment`.

    Examples:
        >>> from mmdet.registry import TASK_UTILS
        >>> import mmkd
        >>> align = TASK_UTILS.build(dict(type='SharedQueryAlignment', of='class', layers='last'))
        >>> align.joint, align.no_object_weight
        (True, 0.1)
    """

    joint = True

    def check(self, student: Detector, teacher: Detector, options: dict[str, Any]) -> None:
        """Check that both models accept the same queries; see :meth:`Alignment.check`."""
        super().check(student, teacher, options)
        if options.get('cached'):
            raise ConfigError(
                'align: a cache cannot store outputs for random queries, which differ in each step; '
                "use align=dict(type='HungarianQueryAlignment')"
            )
        ours, theirs = query_form(student), query_form(teacher)
        if ours != theirs:
            raise ConfigError(
                f'align: student and teacher must have queries of the same form, got {ours} (student) and '
                f"{theirs} (teacher); use align=dict(type='HungarianQueryAlignment')"
            )


@TASK_UTILS.register_module()
class IndexQueryAlignment(QueryAlignment):
    """Pairs the queries of both models by their index.

    Use it for a student that inherited the teacher's query embeddings (``init_student``): queries with the
    same index then detect the same objects. Without inheritance, equal indices have no meaning. In
    query-prior assignment of DETRDistill (Chang et al., ICCV 2023, arXiv 2211.10156), the student also uses
    the teacher's queries, but as an additional group.

    The arguments are those of :class:`QueryAlignment`.

    Examples:
        >>> from mmdet.registry import TASK_UTILS
        >>> import mmkd
        >>> align = TASK_UTILS.build(dict(type='IndexQueryAlignment', of='embedding', layers=[0, -1]))
        >>> str(align.default_source('student', None))
        'input of bbox_head[0]'
    """

    def check(self, student: Detector, teacher: Detector, options: dict[str, Any]) -> None:
        """Check that both models have the same number of fixed queries; see :meth:`Alignment.check`."""
        super().check(student, teacher, options)
        if options.get('cached'):
            raise ConfigError(
                "align: a query of one index detects objects in one part of the view, but a cached teacher's "
                "outputs may come from another view; use align=dict(type='HungarianQueryAlignment')"
            )
        for owner, model in (('student', student), ('teacher', teacher)):
            if queries_from_image(model):
                raise ConfigError(
                    f"align: the {owner}'s encoder selects the queries of each image, so their index has no "
                    f"meaning; use align=dict(type='HungarianQueryAlignment')"
                )
        ours, theirs = num_queries(student), num_queries(teacher)
        if ours != theirs:
            raise ConfigError(
                f'align: student and teacher must have the same number of queries, got {ours} and {theirs}; '
                f'set model.student.num_queries={theirs}, or use '
                f"align=dict(type='HungarianQueryAlignment')"
            )


def comparable_scores(student: Tensor, teacher: Tensor, step: Step) -> tuple[Tensor, Tensor]:
    """Return class scores of both models for the shared classes, and for no-object with two softmax heads.

    Args:
        student: The student's scores before the activation, shape (…, outputs).
        teacher: The teacher's scores before the activation, shape (…, outputs).
        step: The data of the step.

    Returns:
        Scores of the same width, for a softmax if both heads use one, else for sigmoids.
    """
    softmax = _both_use_softmax(step)
    if not softmax:
        student, teacher = (
            scores_for_sigmoid(scores) if uses_softmax(model.bbox_head) else scores
            for scores, model in ((student, step.student), (teacher, step.teacher))
        )
    ours = step.class_map.student_logits(student, softmax)
    return ours, step.class_map.teacher_logits(teacher, softmax)


def _both_use_softmax(step: Step) -> bool:
    return uses_softmax(step.student.bbox_head) and uses_softmax(step.teacher.bbox_head)


def _take_queries(values: Tensor, index: Tensor) -> Tensor:
    """Select rows, shape (layers, N, pairs, width), of values (layers, N, queries, width)."""
    return values.gather(2, index[..., None].expand(-1, -1, -1, values.shape[-1]))
