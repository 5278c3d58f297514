"""Which decoder query of the teacher corresponds to which of the student."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from mmdet.registry import TASK_UTILS
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ..errors import ConfigError
from ..families.transformer import is_transformer, num_queries, queries_from_image, query_form
from ..recorder import Source
from .base import Alignment, Pair, Step, require_same_shape

# Class scores and boxes (cx, cy, w, h in fractions of the image) of all decoder layers.
HEAD = Source('bbox_head')
OF = ('class', 'box', 'embedding')
BOX_FORMATS = ('cxcywh', 'xyxy')
# Carion et al.: End-to-End Object Detection with Transformers, ECCV 2020 (arXiv 2005.12872), sec. 3.1:
# no-object terms are down-weighted by a factor of 10.
NO_OBJECT_WEIGHT = 0.1
# Threads that solve assignments, of which a step has one a layer and image.
SOLVERS = min(4, os.cpu_count() or 1)


class QueryAlignment(Alignment):
    """Base of the three alignments below: rows of queries that both decoders have answered.

    Denoising queries are left out. The two decoders may have different numbers of layers: a layer of
    the student is paired with the teacher's at the same share of its depth, the last with the last
    (:func:`layer_map`).

    The two heads may differ: two softmax heads are compared as such; if one of them is a sigmoid
    head, a softmax head's scores are brought to what a sigmoid would need to give the same
    probability of each class, and every class is compared on its own.

    A query counts by the teacher's probability :math:`f` of its likeliest shared class: :math:`f +
    (1 - f) w` with the no-object weight :math:`w`. With :math:`w = 0` this is the foreground rebalance weight
    of KD-DETR (arXiv 2211.08071), with 1 all queries count alike.

    Args:
        of: What the recorded outputs are: ``class`` scores, ``box`` coordinates or query
            ``embedding``; of the output of ``bbox_head`` the right one is taken. The embeddings that
            the head reads are ``dict(module='bbox_head', capture='input', index=0)``.
        layers: ``all`` decoder layers, the ``last``, or a list of student layers (from 0, or from the
            end with -1) or of [student layer, teacher layer].
        no_object_weight: The :math:`w` above. Default: 0.1 for classes, DETR's factor; 0 for boxes and
            embeddings, which mean nothing where there is no object.
        box_format: ``cxcywh`` in fractions of the image, as the heads give it, or ``xyxy``, which
            ``GIoU`` needs.
    """

    needs_class_map = True
    reduces_over_ranks = True

    def __init__(
        self,
        of: str = 'class',
        layers: str | Sequence = 'all',
        no_object_weight: float | None = None,
        box_format: str = 'cxcywh',
    ) -> None:
        if of not in OF:
            raise ConfigError(f"align.of='{of}' is none of {OF}")
        if box_format not in BOX_FORMATS:
            raise ConfigError(f"align.box_format='{box_format}' is none of {BOX_FORMATS}")
        if no_object_weight is None:
            no_object_weight = NO_OBJECT_WEIGHT if of == 'class' else 0.0
        if not 0 <= no_object_weight <= 1:
            raise ConfigError(f'align.no_object_weight={no_object_weight} lies not in [0, 1]')
        self.of = of
        self.layers = layers
        self.no_object_weight = no_object_weight
        #: None where no boxes are compared.
        self.box_format = box_format if of == 'box' else None
        self.layer_pairs: list[tuple[int, int]] = []

    @property
    def rows_are_fixed(self) -> bool:
        return False

    @property
    def teacher_sources(self) -> list[Source]:
        return [HEAD]  # tells how much each query counts

    def check(self, student: nn.Module, teacher: nn.Module, options: dict[str, Any]) -> None:
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
            both = uses_softmax(student) and uses_softmax(teacher)
            self.activation = 'softmax' if both else 'sigmoid'

    def pairing(self, step: Step) -> tuple[Tensor, Tensor] | None:
        """Which queries belong together.

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
            ours, theirs = _at(ours, pairing[0]), _at(theirs, pairing[1])
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

    def layer_values(self, value: Any, model: nn.Module, owner: str) -> Tensor:
        """A recorded output at the chosen layers, shape (layers, N, queries, width).

        Raises:
            ConfigError: It is no such output.
        """
        tensors = isinstance(value, (tuple, list)) and all(isinstance(v, Tensor) for v in value)
        if tensors and len(value) == 2 and self.of != 'embedding' and value[0].dim() == 4:
            value = value[OF.index(self.of)]  # the head's output: classes and boxes
        elif tensors and len({v.shape for v in value}) == 1 and value[0].dim() == 3:
            value = torch.stack(list(value))  # a branch that the layers share
        depth, count = model.decoder.num_layers, num_queries(model)
        embedding = "dict(module='bbox_head', capture='input', index=0)"
        what = embedding if self.of == 'embedding' else 'bbox_head'
        if not isinstance(value, Tensor) or value.dim() != 4 or value.shape[0] != depth:
            kind = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(
                f"the {owner}'s recorded output is {kind}, not one row a query of each of its {depth} "
                f'decoder layers; record {what}'
            )
        if self.of == 'box' and value.shape[-1] != 4:
            raise ConfigError(f"the {owner}'s recorded output is no boxes; record {what}")
        value = self._layers(value, 0 if owner == 'student' else 1)
        return value if self.joint else value[:, :, -count:]  # denoising queries come first

    def _layers(self, value: Tensor, side: int) -> Tensor:
        """The chosen layers of the student's (side 0) or the teacher's (1) value of all layers."""
        chosen = [pair[side] for pair in self.layer_pairs]
        # Indexing copies, and a list would have to be brought to the device.
        return value if chosen == list(range(len(value))) else value[chosen]

    def weight(self, step: Step) -> Tensor | None:
        """How much each query of the teacher counts, shape (layers, N, queries); None for all alike."""
        if self.no_object_weight == 1:
            return None
        confidence = self.confidence(step)
        return confidence + (1 - confidence) * self.no_object_weight

    def confidence(self, step: Step) -> Tensor:
        """The teacher's probability of the likeliest shared class, shape (layers, N, queries)."""
        key = ('confidence', self.joint, tuple(self.layer_pairs))
        if key not in step.memo:
            scores = self._layers(step.teacher_record[HEAD][0], 1)
            softmax = uses_softmax(step.teacher)
            scores = step.class_map.teacher_logits(scores.float(), softmax)
            probability = scores.softmax(-1)[..., :-1] if softmax else scores.sigmoid()
            step.memo[key] = probability.amax(-1)
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
    no object. Differences to DETRDistill: soft classes instead of the likeliest, and no separate
    treatment of the teacher's positive and negative queries, which :math:`w_t` stands for.

    Where the teacher has more queries than the student, its most confident are paired; where it has
    fewer, the student's remaining queries are left to the labels. All costs of a step go to the host at
    once, and once a step: entries with the same costs and layers share the matching.

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
            raise ConfigError('align: costs must not be negative, nor all of them 0')
        if num_queries is not None and num_queries < 1:
            raise ConfigError(f'align.num_queries={num_queries} must be at least 1')
        self.cost_weights = (cost_class, cost_l1, cost_giou)
        self.num_queries = num_queries

    @property
    def student_sources(self) -> list[Source]:
        return [HEAD]

    def pairing(self, step: Step) -> tuple[Tensor, Tensor]:
        key = ('matching', self.cost_weights, self.num_queries, tuple(self.layer_pairs))
        if key not in step.memo:
            step.memo[key] = self._match(step)
        return step.memo[key]

    @torch.no_grad()
    def _match(self, step: Step) -> tuple[Tensor, Tensor]:
        candidates, theirs = self.candidates(step)
        cost = self.costs(candidates).cpu().numpy()
        try:
            ours = torch.from_numpy(assign(cost))
        except ValueError:
            raise _not_finite(candidates) from None
        return ours.to(theirs.device, non_blocking=True), theirs

    def candidates(self, step: Step) -> tuple[Candidates, Tensor]:
        """What is matched, and which of the teacher's queries it is, shape (layers, N, pairs)."""
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
            their_scores, their_boxes = _at(their_scores, theirs), _at(their_boxes, theirs)
            confidence = confidence.gather(2, theirs)
        else:
            theirs = torch.arange(most, device=scores.device).expand_as(confidence)
        scores, their_scores = comparable_scores(scores.float(), their_scores.float(), step)
        softmax = uses_softmax(step.student) and uses_softmax(step.teacher)
        p, q = (s.softmax(-1) if softmax else s.sigmoid() for s in (their_scores, scores))
        counts = confidence + (1 - confidence) * NO_OBJECT_WEIGHT
        return Candidates(p, q, their_boxes.float(), boxes.float(), counts), theirs

    def costs(self, candidates: Candidates) -> Tensor:
        """The cost of each pair, shape (layers, N, teacher queries, student queries)."""
        # Layer by layer: GIoU needs several times the memory of what it gives.
        return torch.stack([self.cost(*layer) for layer in zip(*candidates, strict=True)])

    def cost(
        self, p: Tensor, q: Tensor, their_boxes: Tensor, boxes: Tensor, counts: Tensor
    ) -> Tensor:
        """The same of one layer, or of one image of it; arguments as in :class:`Candidates`."""
        overlaps = generalized_iou(bbox_cxcywh_to_xyxy(their_boxes), bbox_cxcywh_to_xyxy(boxes))
        cost_class, cost_l1, cost_giou = self.cost_weights
        cost = (
            cost_giou * (1 - overlaps)
            + cost_l1 * torch.cdist(their_boxes, boxes, p=1)
            - cost_class * (p @ q.transpose(-1, -2))
        )
        return cost * counts[..., None]


class Candidates(NamedTuple):
    """Queries to be matched, teacher's and student's, of all chosen layers.

    Args:
        p, q: Probabilities of classes, the teacher's and the student's, shape (layers, N, queries, width).
        their_boxes, boxes: cx, cy, w, h in fractions of the image, shape (layers, N, queries, 4).
        counts: How much each of the teacher's queries counts, shape (layers, N, queries).
    """

    p: Tensor
    q: Tensor
    their_boxes: Tensor
    boxes: Tensor
    counts: Tensor


def generalized_iou(boxes: Tensor, others: Tensor, eps: float = 1e-6) -> Tensor:
    """Generalised intersection over union of all pairs (arXiv 1902.09630, alg. 1).

    The values of mmdet's ``bbox_overlaps``, in half its time, which was most of what costs took: there x
    and y of a pair lie side by side, which keeps processors from working on several pairs at once.

    Args:
        boxes, others: x1, y1, x2, y2, shape (…, M, 4) and (…, N, 4).
        eps: Smallest area a division sees; mmdet's.

    Returns:
        Shape (…, M, N).
    """
    x1, y1, x2, y2 = boxes[..., :, None, :].unbind(-1)
    u1, v1, u2, v2 = others[..., None, :, :].unbind(-1)

    def shared_and_hull(low: Tensor, high: Tensor, low2: Tensor, high2: Tensor) -> list[Tensor]:
        shared = torch.minimum(high, high2).sub_(torch.maximum(low, low2)).clamp_(min=0)
        return [shared, torch.maximum(high, high2).sub_(torch.minimum(low, low2))]

    (overlap, hull), (height, hull_height) = (
        shared_and_hull(x1, x2, u1, u2),
        shared_and_hull(y1, y2, v1, v2),
    )
    overlap, hull = overlap.mul_(height), hull.mul_(hull_height).clamp_(min=eps)
    union = ((x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1)).sub_(overlap).clamp_(min=eps)
    return overlap.div_(union).sub_((hull - union).div_(hull))


def assign(cost: np.ndarray) -> np.ndarray:
    """The cheapest one-to-one matching of each cost matrix.

    Args:
        cost: Shape (…, rows, columns), no fewer columns than rows.

    Returns:
        The column of each row, shape (…, rows).

    Raises:
        ValueError: A cost is not finite.
    """
    if not np.isfinite(cost).all():
        raise ValueError('a cost is not finite')
    each = cost.reshape(-1, *cost.shape[-2:]).astype(np.float64)  # as scipy solves it
    if cost.shape[-2] == cost.shape[-1]:
        # Each column is taken by some row, so that what it costs every row decides nothing. Without that
        # scipy needs half the time where the predictions of all queries are alike.
        each -= each.min(axis=-2, keepdims=True)
    # scipy (from 1.12 on) lets other threads run while it solves.
    with ThreadPoolExecutor(SOLVERS) as pool:
        solved = list(pool.map(linear_sum_assignment, each))
    return np.stack([columns for _, columns in solved]).reshape(cost.shape[:-1])


def _not_finite(candidates: Candidates) -> ConfigError:
    """Whose fault it is that costs are not finite, and what to do about it."""
    if torch.isfinite(candidates.their_boxes).all() and torch.isfinite(candidates.p).all():
        return ConfigError(
            "the student's predictions are not finite numbers: the training has diverged; lower the "
            'learning rate or loss_weight, or clip gradients with optim_wrapper.clip_grad'
        )
    return ConfigError(
        "the teacher's predictions are not finite numbers; its checkpoint holds broken weights"
    )


@TASK_UTILS.register_module()
class SharedQueryAlignment(QueryAlignment):
    """Both decoders answer the same queries, so that nothing has to be matched.

    Wang et al.: KD-DETR, CVPR 2024 (arXiv 2211.08071), whose specific distillation points are the
    teacher's own queries and general ones random, drawn anew each step. How many random ones is set by
    ``teacher=dict(random_queries=…)``, how they are drawn told in
    :class:`mmkd.families.Transformer`. The student's decoder runs once more for it; its own queries,
    labels and predictions are not touched. Both models must understand the same queries: the same kind
    of detector and, unless queries are anchors (DAB-DETR), the same width.

    Args:
        options: As :class:`QueryAlignment`.
    """

    joint = True

    def check(self, student: nn.Module, teacher: nn.Module, options: dict[str, Any]) -> None:
        super().check(student, teacher, options)
        if options.get('cached'):
            raise ConfigError(
                'the teacher answers random queries, which are others in each step, and a cache '
                'cannot hold that; '
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

    For a student that inherited the teacher's query embeddings (``init_student``) and so starts with
    queries that look for the same things. With other queries this pairs what does not correspond. The
    idea that a student profits from the teacher's queries is that of query-prior assignment in
    DETRDistill (Chang et al., ICCV 2023, arXiv 2211.10156), where they are a further group of queries.

    Args:
        options: As :class:`QueryAlignment`.
    """

    def check(self, student: nn.Module, teacher: nn.Module, options: dict[str, Any]) -> None:
        super().check(student, teacher, options)
        if options.get('cached'):
            raise ConfigError(
                "a query of one index looks at one part of the view, which a cached teacher's "
                'answers, brought to '
                "another view, no longer do; use align=dict(type='HungarianQueryAlignment')"
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


def layer_map(student: int, teacher: int, layers: str | Sequence = 'all') -> list[tuple[int, int]]:
    """Which layers of two stacks belong together, counted from 0.

    Args:
        student: Number of the student's layers.
        teacher: Number of the teacher's.
        layers: As :class:`QueryAlignment`.

    Returns:
        Pairs (student layer, teacher layer). Layer i of S goes with layer ceil(i T / S) of T, both
        counted from 1: of 3 and 6, the first with the second, the last with the last.

    Raises:
        ConfigError: There is no such layer.
    """

    def default(layer: int) -> int:
        return -(-(layer + 1) * teacher // student) - 1

    if isinstance(layers, str):
        if layers not in ('all', 'last'):
            raise ConfigError(f"align.layers='{layers}' is neither 'all', 'last' nor a list")
        chosen = range(student) if layers == 'all' else [student - 1]
        return [(layer, default(layer)) for layer in chosen]
    pairs = []
    for layer in layers:
        ours, theirs = layer if isinstance(layer, (list, tuple)) else (layer, None)
        for owner, index, count in (('student', ours, student), ('teacher', theirs, teacher)):
            if index is not None and not -count <= index < count:
                raise ConfigError(
                    f"align.layers={list(layers)}: the {owner}'s decoder has {count} layers, 0 to "
                    f'{count - 1}, but not {index}'
                )
        ours %= student
        pairs.append((ours, default(ours) if theirs is None else theirs % teacher))
    if not pairs:
        raise ConfigError('align.layers is empty')
    return pairs


def uses_softmax(model: nn.Module) -> bool:
    """Whether a detection transformer's classifier is a softmax with no-object last."""
    return not getattr(model.bbox_head.loss_cls, 'use_sigmoid', False)


def comparable_scores(student: Tensor, teacher: Tensor, step: Step) -> tuple[Tensor, Tensor]:
    """Class scores of both for the shared classes and, if both heads have a softmax, for no-object.

    Args:
        student: The student's scores before the activation, shape (…, outputs).
        teacher: The teacher's, likewise.
        step: The training step.

    Returns:
        Scores of the same width, for a softmax or each for a sigmoid.
    """
    softmax = uses_softmax(step.student), uses_softmax(step.teacher)
    if not all(softmax):
        student, teacher = (
            scores_for_sigmoid(scores) if soft else scores
            for scores, soft in zip((student, teacher), softmax, strict=True)
        )
    ours = step.class_map.student_logits(student, all(softmax))
    return ours, step.class_map.teacher_logits(teacher, all(softmax))


def scores_for_sigmoid(scores: Tensor) -> Tensor:
    """Scores whose sigmoid is the probability a softmax gives each class.

    Args:
        scores: Before a softmax with no-object last, shape (…, classes + 1).

    Returns:
        Shape (…, classes).
    """
    log_p = scores.log_softmax(-1)[..., :-1]
    # Below the rounding of float32 the logarithm of 1 - p would be minus infinity.
    log_p = log_p.clamp(max=-1e-6)
    return log_p - torch.log(-torch.expm1(log_p))


def _at(values: Tensor, index: Tensor) -> Tensor:
    """Rows (layers, N, pairs, width) of values (layers, N, queries, width)."""
    return values.gather(2, index[..., None].expand(-1, -1, -1, values.shape[-1]))
