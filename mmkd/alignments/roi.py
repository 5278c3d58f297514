"""RoI head outputs on the same proposals."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.models.task_modules import DeltaXYWHBBoxCoder
from mmdet.registry import TASK_UTILS
from mmdet.structures.bbox import get_box_tensor
from torch import Tensor

from ..errors import ConfigError
from ..families.class_scores import uses_softmax
from ..families.two_stage import BOX_HEAD, box_head_path, has_box_head, is_cascade
from ..recorder import Source
from ..types import Detector
from .base import Alignment, Pair, Step, require_choice, require_same_shape

SELECTIONS = ('all', 'labels', 'teacher')
COORDINATES = ('delta', 'box')


class RoIAlignment(Alignment):
    """Base of the two alignments below: which proposals count, and how much.

    The box heads are those whose modules the loss entry records: the one of a single head, or a stage
    of a cascade. By default it is stage 0 of a cascade, whose proposals are those of the RPN on both sides.

    A step may have no proposals at all, and a cascade then skips its later stages: no rows, and a loss
    of 0.

    Args:
        select: ``all`` proposals; those that the ground-truth ``labels`` call foreground; or those
            that the ``teacher`` does.
        confidence: Weight each proposal by the teacher's probability for its class.
    """

    needs_class_map = True
    reduces_over_ranks = True

    def __init__(self, select: str = 'all', confidence: bool = False) -> None:
        require_choice('select', select, SELECTIONS)
        self.select = select
        self.confidence = confidence
        self.uses_student_proposals = True
        #: Paths of the two box heads, the student's and the teacher's.
        self.heads = ('', '')

    @property
    def labels(self) -> Source:
        """The labels of the student's proposals, shape (n,)."""
        # mmdet hands them to its classification loss as second argument.
        return Source(f'{self.heads[0]}.loss_cls', capture='input', index=1)

    @property
    def can_average_teachers(self) -> bool:
        return self.uses_student_proposals

    def default_source(self, owner: str, model: Detector) -> Source:
        path = str(self.default_module)
        if has_box_head(model) and is_cascade(model):
            path = path.replace(BOX_HEAD, f'{BOX_HEAD}.0')
        return Source(path)

    @property
    def student_sources(self) -> list[Source]:
        return [self.labels] if self.uses_student_proposals else []

    def check(self, student: Detector, teacher: Detector, options: dict[str, Any]) -> None:
        sides = (('student', student, self.student), ('teacher', teacher, self.teacher))
        for owner, model, _ in sides:
            if not has_box_head(model):
                raise ConfigError(
                    f'{type(self).__name__} pairs the box heads of RoI heads; the {owner}, a '
                    f'{type(model).__name__}, has none'
                )
        ours, theirs = (box_head_path(model, source) for _, model, source in sides)
        self.heads = (ours, theirs)
        softmax = [uses_softmax(head) for head in self.heads_of(student, teacher)]
        if softmax[0] != softmax[1]:
            raise ConfigError(
                'one RoI classifier uses a softmax and the other a sigmoid: their scores have no '
                'common meaning'
            )
        self.softmax = softmax[0]
        self.uses_student_proposals = options.get('proposals', 'student') == 'student'
        if self.uses_student_proposals and options.get('cached'):
            raise ConfigError(
                "a cache cannot hold the teacher's outputs for the student's proposals, which differ from "
                "step to step; set teacher.proposals='teacher'"
            )
        if self.select == 'labels' and not self.uses_student_proposals:
            raise ConfigError(
                "align.select: 'labels' needs the student's proposals, only they have labels; with "
                "teacher.proposals='teacher' set align.select='teacher'"
            )

    def heads_of(self, student: Detector, teacher: Detector) -> tuple[Detector, Detector]:
        """The two box heads."""
        return student.get_submodule(self.heads[0]), teacher.get_submodule(self.heads[1])

    def student_output(self, step: Step) -> Tensor:
        later_stage = self.heads[0] not in (BOX_HEAD, f'{BOX_HEAD}.0')
        if later_stage and self.student not in step.student_record:
            weight = next(step.student.get_submodule(self.student.module).parameters())
            return weight.flatten()[:0].reshape(
                0, self.row_width(step)
            )  # in the graph, as DDP needs it
        return super().student_output(step)

    def row_width(self, step: Step) -> int:
        """Values per proposal, as far as :meth:`__call__` needs them."""
        return 4

    def shared_labels(self, step: Step, rows: Tensor) -> Tensor:
        """Labels of the proposals as :meth:`ClassMap.shared_index` has them, shape (n,)."""
        if not len(rows):  # mmdet does not call its classification loss then
            return rows.new_zeros(0, dtype=torch.long)
        return step.class_map.shared_index(step.student_record[self.labels])

    def classes_and_weights(
        self, step: Step, scores: Tensor, foreground: bool
    ) -> tuple[Tensor, Tensor]:
        """The class of each proposal and the weight of the proposal.

        Args:
            step: The training step.
            scores: The teacher's class scores, shape (n, teacher outputs).
            foreground: Whether every proposal needs a foreground class, as boxes have one per class.

        Returns:
            Index of the class among the shared ones, shape (n,), and weights, shape (n,).
        """
        softmax, count = self.softmax, len(step.class_map)
        scores = step.class_map.teacher_logits(scores.float(), softmax)
        probability = scores.softmax(-1) if softmax else scores.sigmoid()
        if self.select == 'labels':
            position = self.shared_labels(step, scores)
        elif self.select == 'all' and foreground:
            position = probability[:, :count].argmax(-1)
        else:
            best, position = probability.max(-1)
            if not softmax:  # such a head has no score of the background
                position = position.where(best > 0.5, position.new_tensor(count))
        index = position.clamp(0, probability.shape[-1] - 1)
        weight = probability.gather(1, index[:, None])[:, 0] if self.confidence else None
        counts = position >= 0
        if self.select != 'all' or foreground:
            counts = counts & (position < count)
        if self.uses_student_proposals and step.class_map.excludes:
            # The teacher takes objects of an excluded class for background; the student must not learn that.
            counts = counts & (self.shared_labels(step, scores) >= 0)
        weight = counts.float() if weight is None else weight * counts
        return position.clamp(0, count - 1), weight


@TASK_UTILS.register_module()
class RoIClassAlignment(RoIAlignment):
    """Pairs the class scores of two RoI heads on the same proposals, class by class.

    Args:
        select: Which proposals count, see :class:`RoIAlignment`.
        confidence: Weight each by the teacher's highest probability.
    """

    default_module = f'{BOX_HEAD}.fc_cls'
    target = 'class'

    def row_width(self, step: Step) -> int:
        return len(step.class_map.student) + self.softmax

    def check(self, student: Detector, teacher: Detector, options: dict[str, Any]) -> None:
        super().check(student, teacher, options)
        self.activation = 'softmax' if self.softmax else 'sigmoid'

    def __call__(self, student: Tensor, teacher: Tensor, step: Step) -> list[Pair]:
        _require_same_proposals(student, teacher)
        ours = step.class_map.student_logits(student, self.softmax)
        theirs = step.class_map.teacher_logits(teacher, self.softmax)
        weight = None
        if self.select != 'all' or self.confidence or step.class_map.excludes:
            weight = self.classes_and_weights(step, teacher, foreground=False)[1]
        target = None
        if self.uses_student_proposals:  # an excluded class has no index, and no weight either
            target = self.shared_labels(step, student).clamp(min=0)
        return [Pair(ours, theirs, weight, target)]


@TASK_UTILS.register_module()
class RoIBoxAlignment(RoIAlignment):
    """Pairs the box regression of two RoI heads on the same proposals, for the same class.

    Each proposal is compared at one class: its ground-truth class where proposals are selected by
    labels, else the teacher's most probable shared class. The teacher's deltas are converted to
    the student's ``target_means`` and ``target_stds``; decoded boxes need no such step.

    A loss that needs targets gets those of the student's own box loss, in the coordinates of the pair.
    Only proposals with a foreground label have one.

    Args:
        select: Which proposals count, see :class:`RoIAlignment`. Default: those with a ground-truth
            class; with the teacher's proposals, those the teacher calls foreground.
        confidence: Weight each by the teacher's probability of that class.
        coordinates: ``delta`` compares regression outputs in the student's normalisation; ``box``
            compares decoded boxes (x1, y1, x2, y2) in fractions of image width and height.
    """

    default_module = f'{BOX_HEAD}.fc_reg'
    target = 'box'

    def __init__(
        self, select: str | None = None, confidence: bool = False, coordinates: str = 'delta'
    ) -> None:
        super().__init__(select or 'all', confidence)
        require_choice('coordinates', coordinates, COORDINATES)
        self.coordinates = coordinates
        self._default_select = select is None

    @property
    def can_average_teachers(self) -> bool:
        return (
            super().can_average_teachers and self.select == 'labels'
        )  # else teachers choose the class

    @property
    def classifier(self) -> Source:
        """The teacher's class scores, shape (n, teacher outputs)."""
        return Source(f'{self.heads[1]}.fc_cls')

    @property
    def targets(self) -> Source:
        """The targets of the student's box loss, shape (n, 4)."""
        return Source(self.heads[0], method='get_targets', index=2)

    @property
    def student_sources(self) -> list[Source]:
        wanted = self.needs_target and self.uses_student_proposals
        return super().student_sources + ([self.targets] if wanted else [])

    @property
    def teacher_sources(self) -> list[Source]:
        return [self.classifier]

    def check(self, student: Detector, teacher: Detector, options: dict[str, Any]) -> None:
        if self._default_select:
            own = options.get('proposals', 'student') == 'student'
            self.select = 'labels' if own else 'teacher'
        super().check(student, teacher, options)
        if self.needs_target and self.uses_student_proposals and self.select != 'labels':
            raise ConfigError(
                f"align.select: must be 'labels' for this loss, which needs the labelled box of each "
                f"proposal, got '{self.select}'"
            )
        if self.coordinates == 'delta':
            heads = self.heads_of(student, teacher)
            for owner, head in zip(('student', 'teacher'), heads, strict=True):
                require_delta_coder(head.bbox_coder, owner)

    def __call__(self, student: Tensor, teacher: Tensor, step: Step) -> list[Pair]:
        _require_same_proposals(student, teacher)
        position, weight = self.classes_and_weights(
            step, step.teacher_record[self.classifier], foreground=True
        )
        ours = _of_class(student.float(), step.class_map.student_label(position))
        theirs = _of_class(teacher.float(), step.class_map.teacher_label(position))
        head, other = self.heads_of(step.student, step.teacher)
        target = self._target(step, head, ours)
        if self.coordinates == 'delta':
            theirs = convert_deltas(theirs, other.bbox_coder, head.bbox_coder)
        else:
            rois = step.shared['rois'][self.heads[1]]
            shapes = [sample.metainfo['img_shape'][1::-1] for sample in step.data_samples]
            size = rois.new_tensor(shapes).repeat(1, 2)[rois[:, 0].long()]
            ours = get_box_tensor(head.bbox_coder.decode(rois[:, 1:], ours)) / size
            theirs = get_box_tensor(other.bbox_coder.decode(rois[:, 1:], theirs)) / size
            target = None if target is None else target / size
        return [Pair(ours, theirs, weight, target)]

    def _target(self, step: Step, head: Detector, rows: Tensor) -> Tensor | None:
        """The labelled boxes of the student's rows, in deltas or pixels; of background, any values."""
        if not (self.needs_target and self.uses_student_proposals):
            return None
        if not len(rows):
            return rows.new_zeros(0, 4)
        target = step.student_record[self.targets].float()
        as_boxes = self.coordinates == 'box'
        if head.reg_decoded_bbox == as_boxes:
            return target
        proposals = step.shared['rois'][self.heads[1]][:, 1:]
        if as_boxes:
            return get_box_tensor(head.bbox_coder.decode(proposals, target))
        # The targets of background are zeros, which are no box to encode.
        background = step.student_record[self.labels] >= head.num_classes
        return head.bbox_coder.encode(proposals, target).masked_fill(background[:, None], 0.0)


def require_delta_coder(coder: Any, owner: str) -> None:
    """Raise a ConfigError unless box deltas of this coder can be converted to another's."""
    if not isinstance(coder, DeltaXYWHBBoxCoder):
        raise ConfigError(
            f"the {owner}'s boxes are encoded by {type(coder).__name__}, whose values cannot be converted; "
            f"compare decoded boxes instead: align.coordinates='box'"
        )


def convert_deltas(deltas: Tensor, given: DeltaXYWHBBoxCoder, wanted: DeltaXYWHBBoxCoder) -> Tensor:
    """Convert deltas, shape (n, 4), from one coder's means and standard deviations to another's."""
    if tuple(given.means) == tuple(wanted.means) and tuple(given.stds) == tuple(wanted.stds):
        return deltas
    means, stds, new_means, new_stds = (
        deltas.new_tensor(values) for values in (given.means, given.stds, wanted.means, wanted.stds)
    )
    return (deltas * stds + means - new_means) / new_stds


def _of_class(deltas: Tensor, labels: Tensor) -> Tensor:
    """The deltas of one class per proposal, shape (n, 4), from (n, 4 * classes) or (n, 4)."""
    deltas = deltas.reshape(len(deltas), deltas.shape[1] // 4, 4)  # there may be none
    if deltas.shape[1] == 1:
        return deltas[:, 0]
    return deltas.gather(1, labels[:, None, None].expand(-1, 1, 4))[:, 0]


def _require_same_proposals(student: Tensor, teacher: Tensor) -> None:
    for owner, value in (('student', student), ('teacher', teacher)):
        if not isinstance(value, Tensor) or value.dim() != 2:
            kind = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(
                f'{owner}: the recorded output must have one row per proposal, got {kind}; record fc_cls or '
                f'fc_reg of its box head'
            )
    require_same_shape(student[:, :0], teacher[:, :0], 'proposals')
