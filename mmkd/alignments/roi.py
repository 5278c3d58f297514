"""Alignments of RoI heads: outputs for the same proposals."""

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
    """Base class of the two alignments below: selects and weights the proposals.

    The recorded module of the loss entry determines the box head: the only one, or a stage of a cascade.
    The default is stage 0 of a cascade; in both models, it evaluates proposals of the RPN.

    A step may have no proposals, in which case a cascade skips its later stages. The pair then has no rows,
    and the loss is 0.

    Args:
        select: The proposals to compare. ``all``: all proposals. ``labels``: those with a foreground class
            in the ground truth. ``teacher``: those that the teacher classifies as foreground.
        confidence: Whether to weight each proposal by the teacher's probability of its class.
    """

    needs_class_map = True
    reduces_over_ranks = True

    def __init__(self, select: str = 'all', confidence: bool = False) -> None:
        require_choice('select', select, SELECTIONS)
        self.select = select
        self.confidence = confidence
        self.uses_student_proposals = True
        #: The paths of the two box heads, of student and teacher.
        self.heads = ('', '')

    @property
    def labels(self) -> Source:
        """The source of the labels of the student's proposals, shape (n,)."""
        # The second argument of mmdet's classification loss.
        return Source(f'{self.heads[0]}.loss_cls', capture='input', index=1)

    @property
    def can_average_teachers(self) -> bool:
        """True with the student's proposals, which are the same for all teachers."""
        return self.uses_student_proposals

    def default_source(self, owner: str, model: Detector) -> Source:
        """Return the default module of the box head; in a cascade, of stage 0."""
        path = str(self.default_module)
        if has_box_head(model) and is_cascade(model):
            path = path.replace(BOX_HEAD, f'{BOX_HEAD}.0')
        return Source(path)

    @property
    def student_sources(self) -> list[Source]:
        """The labels of the proposals, if they are the student's."""
        return [self.labels] if self.uses_student_proposals else []

    def check(self, student: Detector, teacher: Detector, options: dict[str, Any]) -> None:
        """Find the two box heads and check that they can be compared; see :meth:`Alignment.check`."""
        sides = (('student', student, self.student), ('teacher', teacher, self.teacher))
        for owner, model, _ in sides:
            if not has_box_head(model):
                raise ConfigError(
                    f'align: {type(self).__name__} needs RoI heads with box heads, but the {owner}, a '
                    f'{type(model).__name__}, has none; compare features'
                )
        ours, theirs = (box_head_path(model, source) for _, model, source in sides)
        self.heads = (ours, theirs)
        softmax = [uses_softmax(head) for head in self.heads_of(student, teacher)]
        if softmax[0] != softmax[1]:
            raise ConfigError(
                'align: both RoI classifiers must use a softmax or both sigmoids, got one of each, so their '
                'scores cannot be compared; compare features'
            )
        self.softmax = softmax[0]
        self.uses_student_proposals = options.get('proposals', 'student') == 'student'
        if self.uses_student_proposals and options.get('cached'):
            raise ConfigError(
                "align: a cache cannot store outputs for the student's proposals, which differ in each step; "
                "set teacher.proposals='teacher'"
            )
        if self.select == 'labels' and not self.uses_student_proposals:
            raise ConfigError(
                "align.select: 'labels' needs the student's proposals, because only they have labels; with "
                "teacher.proposals='teacher' set align.select='teacher'"
            )

    def heads_of(self, student: Detector, teacher: Detector) -> tuple[Detector, Detector]:
        """Return the box heads of student and teacher."""
        return student.get_submodule(self.heads[0]), teacher.get_submodule(self.heads[1])

    def student_output(self, step: Step) -> Tensor:
        """Return the recorded output of the student; no rows if a later stage of a cascade did not run."""
        later_stage = self.heads[0] not in (BOX_HEAD, f'{BOX_HEAD}.0')
        if later_stage and self.student not in step.student_record:
            weight = next(step.student.get_submodule(self.student.module).parameters())
            # A slice of a weight: DDP needs the weight in the graph.
            return weight.flatten()[:0].reshape(0, self.row_width(step))
        return super().student_output(step)

    def row_width(self, step: Step) -> int:
        """Return the number of values per proposal, for an output without rows."""
        return 4

    def shared_labels(self, step: Step, rows: Tensor) -> Tensor:
        """Return the labels of the proposals among the shared classes, shape (n,).

        See :meth:`ClassMap.shared_index`.
        """
        if not len(rows):  # mmdet does not call its classification loss in this case
            return rows.new_zeros(0, dtype=torch.long)
        return step.class_map.shared_index(step.student_record[self.labels])

    def classes_and_weights(
        self, step: Step, scores: Tensor, foreground: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the class and the weight of each proposal.

        Args:
            step: The data of the step.
            scores: The teacher's class scores, shape (n, teacher outputs).
            foreground: Whether each proposal needs a foreground class, as boxes do.

        Returns:
            The indices of the classes among the shared classes, shape (n,), and the weights, shape (n,).
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
            if not softmax:  # a sigmoid head has no score for the background
                position = position.where(best > 0.5, position.new_tensor(count))
        index = position.clamp(0, probability.shape[-1] - 1)
        weight = probability.gather(1, index[:, None])[:, 0] if self.confidence else None
        counts = position >= 0
        if self.select != 'all' or foreground:
            counts = counts & (position < count)
        if self.uses_student_proposals and step.class_map.excludes:
            # For the teacher, objects of an excluded class are background. The student must not learn this.
            counts = counts & (self.shared_labels(step, scores) >= 0)
        weight = counts.float() if weight is None else weight * counts
        return position.clamp(0, count - 1), weight


@TASK_UTILS.register_module()
class RoIClassAlignment(RoIAlignment):
    """Pairs the class scores of two RoI heads for the same proposals, one row per proposal.

    Args:
        select: The proposals to compare, see :class:`RoIAlignment`.
        confidence: Whether to weight each proposal by the teacher's highest probability.

    Examples:
        >>> from mmdet.registry import TASK_UTILS
        >>> import mmkd
        >>> align = TASK_UTILS.build(dict(type='RoIClassAlignment', select='labels', confidence=True))
        >>> align.default_module
        'roi_head.bbox_head.fc_cls'
    """

    default_module = f'{BOX_HEAD}.fc_cls'
    target = 'class'

    def row_width(self, step: Step) -> int:
        """Return the number of scores per proposal."""
        return len(step.class_map.student) + self.softmax

    def check(self, student: Detector, teacher: Detector, options: dict[str, Any]) -> None:
        """Check as :class:`RoIAlignment` does, and set ``activation``."""
        super().check(student, teacher, options)
        self.activation = 'softmax' if self.softmax else 'sigmoid'

    def __call__(self, student: Tensor, teacher: Tensor, step: Step) -> list[Pair]:
        """Pair scores of the shared classes, shape (proposals, scores); see :meth:`Alignment.__call__`."""
        _require_same_proposals(student, teacher)
        ours = step.class_map.student_logits(student, self.softmax)
        theirs = step.class_map.teacher_logits(teacher, self.softmax)
        weight = None
        if self.select != 'all' or self.confidence or step.class_map.excludes:
            weight = self.classes_and_weights(step, teacher, foreground=False)[1]
        target = None
        if self.uses_student_proposals:  # an excluded class has index -1, and weight 0
            target = self.shared_labels(step, student).clamp(min=0)
        return [Pair(ours, theirs, weight, target)]


@TASK_UTILS.register_module()
class RoIBoxAlignment(RoIAlignment):
    """Pairs the box regression of two RoI heads for the same proposals and classes, one row per proposal.

    Each proposal is compared for one class: its ground-truth class with ``select='labels'``, else the
    teacher's most probable shared class. The teacher's deltas are converted to the student's
    ``target_means`` and ``target_stds``. Decoded boxes need no conversion.

    A loss that needs targets receives those of the student's own box loss, in the coordinates of the pair.
    Only proposals with a foreground label have a target.

    Args:
        select: The proposals to compare, see :class:`RoIAlignment`. Default: those with a ground-truth
            class; with the teacher's proposals, those that the teacher classifies as foreground.
        confidence: Whether to weight each proposal by the teacher's probability of that class.
        coordinates: ``delta`` compares regression outputs in the student's normalisation. ``box`` compares
            decoded boxes (x1, y1, x2, y2) in fractions of image width and height.

    Examples:
        >>> from mmdet.registry import TASK_UTILS
        >>> import mmkd
        >>> align = TASK_UTILS.build(dict(type='RoIBoxAlignment', coordinates='box'))  # as GIoU needs
        >>> align.default_module, align.coordinates
        ('roi_head.bbox_head.fc_reg', 'box')
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
        """True with ``select='labels'``. Otherwise the teacher selects the class of each proposal."""
        return super().can_average_teachers and self.select == 'labels'

    @property
    def classifier(self) -> Source:
        """The source of the teacher's class scores, shape (n, teacher outputs)."""
        return Source(f'{self.heads[1]}.fc_cls')

    @property
    def targets(self) -> Source:
        """The source of the targets of the student's box loss, shape (n, 4)."""
        return Source(self.heads[0], method='get_targets', index=2)

    @property
    def student_sources(self) -> list[Source]:
        """The labels of the proposals and, if the loss needs them, the box targets."""
        wanted = self.needs_target and self.uses_student_proposals
        return super().student_sources + ([self.targets] if wanted else [])

    @property
    def teacher_sources(self) -> list[Source]:
        """The class scores, for the class and the weight of each proposal."""
        return [self.classifier]

    def check(self, student: Detector, teacher: Detector, options: dict[str, Any]) -> None:
        """Check as :class:`RoIAlignment` does, and that deltas can be converted."""
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
        """Pair the boxes of one class per proposal, shape (proposals, 4); see :meth:`Alignment.__call__`."""
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
        """The labelled boxes of the proposals, in deltas or pixels; for background, any values."""
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
        # The targets of background are zeros, which cannot be encoded as a box.
        background = step.student_record[self.labels] >= head.num_classes
        return head.bbox_coder.encode(proposals, target).masked_fill(background[:, None], 0.0)


def require_delta_coder(coder: Any, owner: str, todo: str = "set align.coordinates='box'") -> None:
    """Raise a ConfigError, with what to do, if box deltas of this coder cannot be converted to another's."""
    if not isinstance(coder, DeltaXYWHBBoxCoder):
        raise ConfigError(
            f'align: deltas can be converted only for a DeltaXYWHBBoxCoder, got {type(coder).__name__} '
            f'({owner}); {todo}'
        )


def convert_deltas(deltas: Tensor, given: DeltaXYWHBBoxCoder, wanted: DeltaXYWHBBoxCoder) -> Tensor:
    """Convert deltas, shape (n, 4), from the means and standard deviations of one coder to another's."""
    if tuple(given.means) == tuple(wanted.means) and tuple(given.stds) == tuple(wanted.stds):
        return deltas
    means, stds, new_means, new_stds = (
        deltas.new_tensor(values) for values in (given.means, given.stds, wanted.means, wanted.stds)
    )
    return (deltas * stds + means - new_means) / new_stds


def _of_class(deltas: Tensor, labels: Tensor) -> Tensor:
    """The deltas of one class per proposal, shape (n, 4), from (n, 4 * classes) or (n, 4)."""
    deltas = deltas.reshape(
        len(deltas), deltas.shape[1] // 4, 4
    )  # explicit sizes: there may be no rows
    if deltas.shape[1] == 1:
        return deltas[:, 0]
    return deltas.gather(1, labels[:, None, None].expand(-1, 1, 4))[:, 0]


def _require_same_proposals(student: Tensor, teacher: Tensor) -> None:
    for owner, value in (('student', student), ('teacher', teacher)):
        if not isinstance(value, Tensor) or value.dim() != 2:
            kind = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(
                f'{owner}: the recorded output must have one row per proposal, got {kind}; record fc_cls or '
                f'fc_reg of the box head'
            )
    require_same_shape(student[:, :0], teacher[:, :0], 'proposals')
