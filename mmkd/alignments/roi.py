"""RoI head outputs on the same proposals."""

from __future__ import annotations

from typing import Any

from mmdet.models.task_modules import DeltaXYWHBBoxCoder
from mmdet.registry import TASK_UTILS
from mmdet.structures.bbox import get_box_tensor
from torch import Tensor, nn

from ..errors import ConfigError
from ..recorder import Source
from .base import Alignment, Pair, Step, require_same_shape

# mmdet hands its classification loss the labels of the sampled proposals as second argument.
LABELS = Source('roi_head.bbox_head.loss_cls', capture='input', index=1)
CLASSIFIER = Source('roi_head.bbox_head.fc_cls')
SELECTIONS = ('all', 'labels', 'teacher')
COORDINATES = ('delta', 'box')


class RoIAlignment(Alignment):
    """Base of the two alignments below: which proposals count, and how much.

    Args:
        select: ``all`` proposals; those that the ground-truth ``labels`` call foreground; or those
            that the ``teacher`` does.
        confidence: Weight each proposal by the teacher's probability for its class.
    """

    needs_class_map = True

    def __init__(self, select: str = 'all', confidence: bool = False) -> None:
        if select not in SELECTIONS:
            raise ConfigError(f"align.select='{select}' is none of {SELECTIONS}")
        self.select = select
        self.confidence = confidence
        self.labelled = True

    @property
    def student_sources(self) -> list[Source]:
        return [LABELS] if self.labelled else []

    def check(self, student: nn.Module, teacher: nn.Module, options: dict[str, Any]) -> None:
        for owner, model in (('student', student), ('teacher', teacher)):
            head = getattr(getattr(model, 'roi_head', None), 'bbox_head', None)
            if head is None or isinstance(head, nn.ModuleList):
                raise ConfigError(
                    f'{type(self).__name__} pairs RoI heads that have one box head; the {owner}, a '
                    f'{type(model).__name__}, has none such'
                )
        if uses_softmax(student) != uses_softmax(teacher):
            raise ConfigError(
                'one RoI classifier uses a softmax and the other a sigmoid: their scores have no '
                'common meaning'
            )
        self.labelled = options.get('proposals', 'student') == 'student'
        if self.select == 'labels' and not self.labelled:
            raise ConfigError(
                "align.select='labels' needs the student's proposals, which alone have labels; with "
                "teacher.proposals='teacher' set align.select='teacher'"
            )

    def judge(self, step: Step, scores: Tensor, foreground: bool) -> tuple[Tensor, Tensor]:
        """The class of each proposal and how much the proposal counts.

        Args:
            step: The training step.
            scores: The teacher's class scores, shape (n, teacher outputs).
            foreground: Whether every proposal needs a foreground class (a box has one).

        Returns:
            Position of the class among the shared ones, shape (n,), and weights, shape (n,).
        """
        softmax, count = uses_softmax(step.teacher), len(step.class_map)
        scores = step.class_map.teacher_logits(scores.float(), softmax)
        probability = scores.softmax(-1) if softmax else scores.sigmoid()
        if self.select == 'labels':
            position = step.class_map.position(step.student_record[LABELS])
        elif self.select == 'all' and foreground:
            position = probability[:, :count].argmax(-1)
        else:
            best, position = probability.max(-1)
            if not softmax:  # such a head says background by saying nothing
                position = position.where(best > 0.5, position.new_tensor(count))
        inside = position.clamp(0, probability.shape[-1] - 1)
        weight = probability.gather(1, inside[:, None])[:, 0] if self.confidence else None
        counts = position >= 0
        if self.select != 'all' or foreground:
            counts = counts & (position < count)
        if self.labelled and step.class_map.excludes:
            # The teacher can only call an object of an unknown class background; it must not teach that.
            counts = counts & (step.class_map.position(step.student_record[LABELS]) >= 0)
        weight = counts.float() if weight is None else weight * counts
        return position.clamp(0, count - 1), weight


@TASK_UTILS.register_module()
class RoIClassAlignment(RoIAlignment):
    """Pairs the class scores of two RoI heads on the same proposals, class by class.

    Args:
        select: Which proposals count, see :class:`RoIAlignment`.
        confidence: Weight each by the teacher's highest probability.
    """

    def check(self, student: nn.Module, teacher: nn.Module, options: dict[str, Any]) -> None:
        super().check(student, teacher, options)
        self.activation = 'softmax' if uses_softmax(student) else 'sigmoid'

    def __call__(self, student: Tensor, teacher: Tensor, step: Step) -> list[Pair]:
        _require_same_proposals(student, teacher)
        softmax = uses_softmax(step.student)
        ours = step.class_map.student_logits(student, softmax)
        theirs = step.class_map.teacher_logits(teacher, softmax)
        weight = None
        if self.select != 'all' or self.confidence or step.class_map.excludes:
            weight = self.judge(step, teacher, foreground=False)[1]
        target = None
        if self.labelled:  # an excluded class has no place, and no weight either
            target = step.class_map.position(step.student_record[LABELS]).clamp(min=0)
        return [Pair(ours, theirs, weight, target)]


@TASK_UTILS.register_module()
class RoIBoxAlignment(RoIAlignment):
    """Pairs the box regression of two RoI heads on the same proposals, for the same class.

    Each proposal is compared at one class: its ground-truth class where proposals are selected by
    labels, else the most probable shared class to the teacher. The teacher's deltas are brought to
    the student's ``target_means`` and ``target_stds``; decoded boxes need no such step.

    Args:
        select: Which proposals count, see :class:`RoIAlignment`. Default: those with a ground-truth
            class; with the teacher's proposals, those the teacher calls foreground.
        confidence: Weight each by the teacher's probability of that class.
        coordinates: ``delta`` compares regression outputs in the student's normalisation; ``box``
            compares decoded boxes (x1, y1, x2, y2) in fractions of image width and height.
    """

    def __init__(
        self, select: str | None = None, confidence: bool = False, coordinates: str = 'delta'
    ) -> None:
        super().__init__(select or 'all', confidence)
        if coordinates not in COORDINATES:
            raise ConfigError(f"align.coordinates='{coordinates}' is none of {COORDINATES}")
        self.coordinates = coordinates
        self._default_select = select is None

    @property
    def teacher_sources(self) -> list[Source]:
        return [CLASSIFIER]

    def check(self, student: nn.Module, teacher: nn.Module, options: dict[str, Any]) -> None:
        if self._default_select:
            own = options.get('proposals', 'student') == 'student'
            self.select = 'labels' if own else 'teacher'
        super().check(student, teacher, options)
        if self.coordinates == 'delta':
            for owner, model in (('student', student), ('teacher', teacher)):
                require_delta_coder(model.roi_head.bbox_head.bbox_coder, owner)

    def __call__(self, student: Tensor, teacher: Tensor, step: Step) -> list[Pair]:
        _require_same_proposals(student, teacher)
        position, weight = self.judge(step, step.teacher_record[CLASSIFIER], foreground=True)
        ours = _of_class(student.float(), step.class_map.student_label(position))
        theirs = _of_class(teacher.float(), step.class_map.teacher_label(position))
        coder, other = (
            model.roi_head.bbox_head.bbox_coder for model in (step.student, step.teacher)
        )
        if self.coordinates == 'delta':
            theirs = convert_deltas(theirs, other, coder)
        else:
            rois = step.shared['rois']
            shapes = [sample.metainfo['img_shape'][1::-1] for sample in step.data_samples]
            size = rois.new_tensor(shapes).repeat(1, 2)[rois[:, 0].long()]
            ours = get_box_tensor(coder.decode(rois[:, 1:], ours)) / size
            theirs = get_box_tensor(other.decode(rois[:, 1:], theirs)) / size
        return [Pair(ours, theirs, weight)]


def uses_softmax(model: nn.Module) -> bool:
    """Whether a detector's RoI classifier is a softmax with background."""
    return not getattr(model.roi_head.bbox_head.loss_cls, 'use_sigmoid', False)


def require_delta_coder(coder: Any, owner: str) -> None:
    """Raise a ConfigError unless box deltas of this coder can be converted to another's."""
    if not isinstance(coder, DeltaXYWHBBoxCoder):
        raise ConfigError(
            f"the {owner}'s boxes are coded by {type(coder).__name__}, whose numbers cannot be converted; "
            f"compare decoded boxes instead: align.coordinates='box'"
        )


def convert_deltas(deltas: Tensor, given: DeltaXYWHBBoxCoder, wanted: DeltaXYWHBBoxCoder) -> Tensor:
    """Bring deltas, shape (n, 4), from one coder's means and standard deviations to another's."""
    if tuple(given.means) == tuple(wanted.means) and tuple(given.stds) == tuple(wanted.stds):
        return deltas
    means, stds, new_means, new_stds = (
        deltas.new_tensor(values) for values in (given.means, given.stds, wanted.means, wanted.stds)
    )
    return (deltas * stds + means - new_means) / new_stds


def _of_class(deltas: Tensor, labels: Tensor) -> Tensor:
    """The four numbers of one class for each proposal, from (n, 4 * classes) or class-agnostic (n, 4)."""
    deltas = deltas.reshape(len(deltas), -1, 4)
    if deltas.shape[1] == 1:
        return deltas[:, 0]
    return deltas.gather(1, labels[:, None, None].expand(-1, 1, 4))[:, 0]


def _require_same_proposals(student: Tensor, teacher: Tensor) -> None:
    for owner, value in (('student', student), ('teacher', teacher)):
        if not isinstance(value, Tensor) or value.dim() != 2:
            kind = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(
                f"the {owner}'s recorded output is {kind}, not one row a proposal; record "
                f'roi_head.bbox_head.fc_cls or fc_reg'
            )
    require_same_shape(student[:, :0], teacher[:, :0], 'proposals')
