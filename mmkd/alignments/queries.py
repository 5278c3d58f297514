"""Corresponding decoder queries of student and teacher."""

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

# Class scores and boxes (cx, cy, w, h in fractions of the image) of all decoder layers.
HEAD = Source('bbox_head')
# The embeddings that the head reads, of all decoder layers.
QUERIES = Source('bbox_head', capture='input', index=0)
COMPARED = ('class', 'box', 'embedding')
BOX_FORMATS = ('cxcywh', 'xyxy')
# Carion et al.: End-to-End Object Detection with Transformers, ECCV 2020 (arXiv 2005.12872), sec. 3.1:
# no-object terms are down-weighted by a factor of 10.
NO_OBJECT_WEIGHT = 0.1


class QueryAlignment(Alignment):
    """Base of the three alignments below: rows of queries that both decoders have answered.

    Denoising queries are left out. The two decoders may have different numbers of layers: a layer of
    the student is paired with the teacher's at the same share of its depth, the last with the last
    (:func:`mmkd.alignments.layer_map`).

    The two heads may differ: two softmax heads are compared as such; if one of them is a sigmoid
    head, a softmax head's scores are converted to those with which a sigmoid gives the same
    probability of each class, and every class is compared on its own.

    The weight of a query depends on the teacher's probability :math:`f` of its most probable shared
    class: :math:`f + (1 - f) w` with the no-object weight :math:`w`. With :math:`w = 0` this is the
    foreground rebalance weight of KD-DETR (arXiv 2211.08071), with 1 all queries count alike.

    Args:
        of: What is compared: ``class`` scores, ``box`` coordinates or query ``embedding``. By default
            the output of ``bbox_head`` is recorded, of which the right one is taken, and for embeddings
            its input, ``dict(module='bbox_head', capture='input', index=0)``.
        layers: ``all`` decoder layers, the ``last``, or a list of student layers (from 0, or from the
            end with -1) or of [student layer, teacher layer].
        no_object_weight: The :math:`w` above. Default: 0.1 for classes, DETR's factor; 0 for boxes and
            embeddings, which mean nothing where there is no object.
        box_format: ``cxcywh`` in fractions of the image, as the heads return it, or ``xyxy``, which
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
        return False

    def default_source(self, owner: str, model: Detector) -> Source:
        return QUERIES if self.of == 'embedding' else HEAD

    @property
    def teacher_sources(self) -> list[Source]:
        return [HEAD]  # for the weights of queries

    def check(self, student: Detector, teacher: Detector, options: dict[str, Any]) -> None:
        for owner, model in (('student', student), ('teacher', teacher)):
            if not is_transformer(model):
                raise ConfigError(
                    f'{type(self).__name__} pairs decoder queries; the {owner}, a '
                    f'{type(model).__name__}, has none that mmkd can run; distil features instead '
                    f"(align=dict(type='FeatureAlignment') or 'EncoderMemoryAlignment')"
                )
        counts = student.decoder.num_layers, teacher.decoder.num_layers
        self.layer_pairs = layer_map(*counts, self.layers)
        if self.of == 'class':
            both = uses_softmax(student.bbox_head) and uses_softmax(teacher.bbox_head)
            self.activation = 'softmax' if both else 'sigmoid'

    def pairing(self, step: Step) -> tuple[Tensor, Tensor] | None:
        """The corresponding queries.

        Returns:
            Indices of student and teacher queries, shape (layers, N, pairs) each; None where the
            queries of both stand in the same order.
        """
        return None

    def __call__(self, student: Any, teacher: Any, step: Step) -> list[Pair]:
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
        if self.of == 'embedding':  # layer by layer: embeddings of two layers are no negatives
            weights = weight if weight is not None else [None] * len(ours)
            return [
                Pair(a.flatten(0, 1), b.flatten(0, 1), None if w is None else w.flatten())
                for a, b, w in zip(ours, theirs, weights, strict=True)
            ]
        weight = None if weight is None else weight.flatten()
        return [Pair(ours.flatten(0, 2), theirs.flatten(0, 2), weight)]

    def layer_values(self, value: Any, model: Detector, owner: str) -> Tensor:
        """A recorded output at the chosen layers, shape (layers, N, queries, width).

        Raises:
            ConfigError: It is no such output.
        """
        tensors = isinstance(value, (tuple, list)) and all(isinstance(v, Tensor) for v in value)
        if tensors and len(value) == 2 and self.of != 'embedding' and value[0].dim() == 4:
            value = value[COMPARED.index(self.of)]  # the head's output: classes and boxes
        elif tensors and len({v.shape for v in value}) == 1 and value[0].dim() == 3:
            value = torch.stack(list(value))  # a branch that the layers share
        depth, count = model.decoder.num_layers, num_queries(model)
        what = (
            "dict(module='bbox_head', capture='input', index=0)"
            if self.of == 'embedding'
            else 'bbox_head'
        )
        if not isinstance(value, Tensor) or value.dim() != 4 or value.shape[0] != depth:
            kind = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(
                f'{owner}: the recorded output must have one row per query of each of the {depth} decoder '
                f'layers, got {kind}; record {what}'
            )
        if self.of == 'box' and value.shape[-1] != 4:
            raise ConfigError(
                f'{owner}: the recorded output must be boxes, got {tuple(value.shape)}; record {what}'
            )
        value = self._layers(value, 0 if owner == 'student' else 1)
        return value if self.joint else value[:, :, -count:]  # denoising queries come first

    def _layers(self, value: Tensor, side: int) -> Tensor:
        """The chosen layers of the student's (side 0) or the teacher's (1) value of all layers."""
        chosen = [pair[side] for pair in self.layer_pairs]
        # Indexing copies, and copies the list to the device.
        return value if chosen == list(range(len(value))) else value[chosen]

    def weight(self, step: Step) -> Tensor | None:
        """Weight of each query of the teacher, shape (layers, N, queries); None: all count alike."""
        if self.no_object_weight == 1:
            return None
        confidence = self.confidence(step)
        return confidence + (1 - confidence) * self.no_object_weight

    def confidence(self, step: Step) -> Tensor:
        """The teacher's highest probability of a shared class, shape (layers, N, queries)."""
        key = ('confidence', self.joint, tuple(self.layer_pairs))
        if key not in step.memo:
            scores = self._layers(step.teacher_record[HEAD][0], 1)
            softmax = uses_softmax(step.teacher.bbox_head)
            scores = step.class_map.teacher_logits(scores.float(), softmax)
            step.memo[key] = class_probabilities(scores, softmax).amax(-1)
        return step.memo[key]


@TASK_UTILS.register_module()
class HungarianQueryAlignment(QueryAlignment):
    r"""Pairs queries so that what they predict agrees best, in every decoder layer and image.

    One-to-one matching as DETR's (Carion et al., ECCV 2020, arXiv 2005.12872, sec. 3.1), with the
    teacher's predictions where labels would stand, as in the Hungarian-matching logits distillation of
    DETRDistill (Chang et al., ICCV 2023, arXiv 2211.10156). For a teacher query :math:`t` and a student
    query :math:`s`

    .. math:: w_t (-\lambda_{cls} \sum_c p_t(c) p_s(c) + \lambda_{L1} |b_t - b_s|_1
        + \lambda_{giou} (1 - GIoU(b_t, b_s)))

    is the cost, where :math:`w_t` is the weight of :class:`QueryAlignment` with DETR's factor 0.1 for
    no object. Differences to DETRDistill: soft classes instead of the most probable one, and no separate
    treatment of the teacher's positive and negative queries, in place of which :math:`w_t` stands.

    Where the teacher has more queries than the student, its most confident are paired; where it has
    fewer, the student's remaining queries are left to the labels. All costs of a step are copied to the
    host at once, and once per step: entries with the same costs and layers share the matching.

    Args:
        cost_class: :math:`\lambda_{cls}`; the defaults are DETR's (sec. A.4).
        cost_l1: :math:`\lambda_{L1}`, of boxes (cx, cy, w, h) in fractions of the image.
        cost_giou: :math:`\lambda_{giou}`.
        num_queries: Pair at most so many of the teacher's queries, the most confident ones.
        options: As :class:`QueryAlignment`.
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
        return [HEAD]

    def pairing(self, step: Step) -> tuple[Tensor, Tensor]:
        key = ('matching', self.cost_weights, self.num_queries, tuple(self.layer_pairs))
        if key not in step.memo:
            candidates, theirs = self.candidates(step)
            ours = match(candidates, self.cost_weights)
            step.memo[key] = ours.to(theirs.device, non_blocking=True), theirs
        return step.memo[key]

    @torch.no_grad()
    def candidates(self, step: Step) -> tuple[Candidates, Tensor]:
        """The queries to match, and the indices of the teacher's, shape (layers, N, pairs)."""
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
    """Both decoders answer the same queries, so that none need to be matched.

    Wang et al.: KD-DETR, CVPR 2024 (arXiv 2211.08071), whose specific distillation points are the
    teacher's own queries and general ones random, drawn anew each step. Their number is
    ``teacher=dict(random_queries=…)``; :class:`mmkd.families.Transformer` draws them. The student's
    decoder runs once more for it; its own queries, labels and predictions are not changed. Both models
    must take the same queries: the same kind of detector and, unless queries are anchors (DAB-DETR), the
    same width.

    Args:
        options: As :class:`QueryAlignment`.
    """

    joint = True

    def check(self, student: Detector, teacher: Detector, options: dict[str, Any]) -> None:
        super().check(student, teacher, options)
        if options.get('cached'):
            raise ConfigError(
                'a cache cannot hold the answers to random queries, which differ from step to step; '
                "use align=dict(type='HungarianQueryAlignment')"
            )
        ours, theirs = query_form(student), query_form(teacher)
        if ours != theirs:
            raise ConfigError(
                f'the student answers {ours}, the teacher {theirs}: they cannot share queries; use '
                f"align=dict(type='HungarianQueryAlignment')"
            )


@TASK_UTILS.register_module()
class IndexQueryAlignment(QueryAlignment):
    """Pairs the queries of both by their index.

    For a student that inherited the teacher's query embeddings (``init_student``), so that queries of one
    index look for the same objects. Other queries do not correspond by index. The
    idea that a student profits from the teacher's queries is that of query-prior assignment in
    DETRDistill (Chang et al., ICCV 2023, arXiv 2211.10156), where they are a further group of queries.

    Args:
        options: As :class:`QueryAlignment`.
    """

    def check(self, student: Detector, teacher: Detector, options: dict[str, Any]) -> None:
        super().check(student, teacher, options)
        if options.get('cached'):
            raise ConfigError(
                "a query of one index looks at one part of the view, but a cached teacher's answers may come "
                "from another view; use align=dict(type='HungarianQueryAlignment')"
            )
        for owner, model in (('student', student), ('teacher', teacher)):
            if queries_from_image(model):
                raise ConfigError(
                    f"the {owner}'s encoder chooses its queries image by image, so their index means "
                    f"nothing; use align=dict(type='HungarianQueryAlignment')"
                )
        ours, theirs = num_queries(student), num_queries(teacher)
        if ours != theirs:
            raise ConfigError(
                f'the student has {ours} queries and the teacher {theirs}: by index only equal numbers '
                f'can be paired; set model.student.num_queries={theirs} or use '
                f"align=dict(type='HungarianQueryAlignment')"
            )


def comparable_scores(student: Tensor, teacher: Tensor, step: Step) -> tuple[Tensor, Tensor]:
    """Class scores of both for the shared classes and, if both heads have a softmax, for no-object.

    Args:
        student: The student's scores before the activation, shape (…, outputs).
        teacher: The teacher's, likewise.
        step: The training step.

    Returns:
        Scores of the same width, for a softmax or each for a sigmoid.
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
    """Rows (layers, N, pairs, width) of values (layers, N, queries, width)."""
    return values.gather(2, index[..., None].expand(-1, -1, -1, values.shape[-1]))
