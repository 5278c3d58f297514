"""The interface of an alignment, its input (Step) and its result (Pair)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from mmdet.structures import SampleList
from torch import Tensor

from ..errors import ConfigError
from ..recorder import Recorder, Source
from ..types import Detector
from .class_map import ClassMap


@dataclass
class Pair:
    """Corresponding values of student and teacher, the input of a loss.

    The values are rows (proposals, anchors, queries) or maps. For rows, the loss is the weighted mean over
    rows.

    Args:
        student: Rows, shape (n, width), or maps, shape (N, C, H, W).
        teacher: Values of the same shape, without gradient.
        weight: Weight of each row or image, or None: equal weights.
        target: Target of each row or image, from the labels, or None. :attr:`Alignment.target` names its
            kind.
        mask: The positions of maps to compare, bool, shape (N, H, W), or None: all.
        total: The divisor of the sum over rows, or None: the sum of the weights, or the number of rows.
            Set it if rows that are not in the pair count in the divisor.

    Examples:
        >>> import torch
        >>> from mmkd.alignments import Pair
        >>> pair = Pair(torch.zeros(3, 4), torch.ones(3, 4), weight=torch.tensor([1.0, 0.0, 0.5]))
        >>> pair.divisor.item()
        1.5
    """

    student: Tensor
    teacher: Tensor
    weight: Tensor | None = None
    target: Tensor | None = None
    mask: Tensor | None = None
    total: Tensor | float | None = None

    @property
    def weight_sum(self) -> Tensor:
        """The sum of the weights, or the number of rows without weights. A loss's mean divides by it."""
        if self.weight is None:
            return self.student.new_full((), len(self.student), dtype=torch.float)
        return self.weight.float().sum()

    @property
    def divisor(self) -> Tensor | float:
        """:attr:`total`, or :attr:`weight_sum` if it is None."""
        return self.weight_sum if self.total is None else self.total


@dataclass
class Step:
    """The data of one training step that alignments read.

    Args:
        data_samples: The meta information and ground truth of the batch.
        student: The student model.
        teacher: The teacher's model.
        student_record: The recorded outputs of the student.
        teacher_record: The recorded outputs of the teacher.
        class_map: The map between the classes of both models. None if no alignment needs it.
        shared: The inputs that both models were evaluated on, by name (:meth:`mmkd.families.Family.run`).
        memo: Results that several loss entries of a step share, by any key.

    Examples:
        >>> from mmkd.alignments import Step
        >>> step = Step([], None, None, {}, {}, shared=dict(scale=(2.0, 2.0)))
        >>> step.scale
        (2.0, 2.0)
        >>> step.stored_masks(None) is None  # the teacher is live: all outputs exist
        True
    """

    data_samples: SampleList
    student: Detector
    teacher: Detector
    student_record: Recorder
    teacher_record: Recorder
    class_map: ClassMap = None  # type: ignore[assignment]  # set where needs_class_map
    shared: dict[str, Any] = field(default_factory=dict)
    memo: dict[Any, Any] = field(default_factory=dict)

    def stored_masks(self, source: Source | None) -> list[Tensor] | None:
        """Return the positions or priors of a teacher's output that its cache contains.

        Returns:
            A mask per level, bool, shape (N, 1 or priors per position, H, W). None: all are present.
        """
        return self.shared.get('stored_masks', {}).get(source)

    @property
    def scale(self) -> tuple[float, float]:
        """Width and height of the teacher's images relative to the student's."""
        return self.shared.get('scale', (1.0, 1.0))


class Alignment:
    """Pairs the recorded outputs of student and teacher.

    A subclass defines :meth:`__call__` and, if needed, :meth:`check` and the properties
    :attr:`student_sources` and :attr:`teacher_sources`. The attributes below are the rest of the
    interface: each is a class attribute, an attribute that :meth:`check` sets, or a property. They are
    read by the loss entry (:class:`mmkd.distillers.LossEntry`), unless noted otherwise.

    Order of calls: :meth:`bind` and :meth:`check` for each pair of models; the sources; then
    :meth:`student_output` and :meth:`__call__` in every step.

    Examples:
        >>> import torch
        >>> from mmkd.alignments import Alignment, Pair, Step
        >>> class FirstLevelAlignment(Alignment):
        ...     def __call__(self, student, teacher, step):
        ...         return [Pair(student[0], teacher[0])]
        >>> levels = [torch.rand(2, 16, 8, 8), torch.rand(2, 16, 4, 4)]
        >>> pairs = FirstLevelAlignment()(levels, levels, Step([], None, None, {}, {}))
        >>> [pair.student.shape for pair in pairs]
        [torch.Size([2, 16, 8, 8])]
    """

    #: The module to record in both models if the entry names none, e.g. ``bbox_head``. None: the entry
    #: must name one. :meth:`default_source` converts it to a source.
    default_module: str | None = None

    # ---- The kind of values. A loss for other values is refused.

    #: The activation of paired class scores, ``softmax`` or ``sigmoid``; None for other values. If it is
    #: set, the mean over several teachers is a mean of probabilities.
    activation: str | None = None
    #: The format of paired boxes, ``cxcywh`` or ``xyxy``. None: no boxes, or boxes in any format.
    box_format: str | None = None
    #: The kind of :attr:`Pair.target`. ``class``: index of the labelled class among a row's scores.
    #: ``box``: the labelled values for ``student``. ``foreground``: the foreground of a map. None: no target.
    target: str | None = None

    # ---- The mean.

    @property
    def reduces_over_ranks(self) -> bool:
        """Whether the mean is over the rows of all ranks. All ranks must then return as many pairs."""
        return False

    # ---- Requirements.

    #: Whether it reads :attr:`Step.class_map`. The distiller then pairs the classes of both models.
    needs_class_map = False
    #: Whether both models are evaluated on queries that the teacher chose, in a joint pass.
    joint = False

    @property
    def runs_teacher_layers(self) -> bool:
        """Whether the teacher's layers run on the student's output (CrossKD)."""
        return False

    # ---- Set by the entry, in :meth:`bind`.

    #: The recorded outputs of student and teacher.
    student: Source = None  # type: ignore[assignment]
    teacher: Source = None  # type: ignore[assignment]
    #: Whether the loss reads :attr:`Pair.target`. Computing it may be costly.
    needs_target = False
    #: Whether a connector maps the student's output before it is paired.
    connected = False

    @property
    def can_average_teachers(self) -> bool:
        """Whether the rows are the same for all teachers, so that their values can be averaged."""
        return True

    def bind(
        self, student: Source | None, teacher: Source | None, needs_target: bool = False
    ) -> None:
        """Set the recorded outputs to compare, and :attr:`needs_target`; called by the loss entry."""
        if student is not None:
            self.student = student
        if teacher is not None:
            self.teacher = teacher
        self.needs_target = needs_target

    def default_source(self, owner: str, model: Detector) -> Source | None:
        """Return the output to record if the entry names none.

        Args:
            owner: ``student`` or ``teacher``.
            model: The student or the teacher's model.
        """
        return None if self.default_module is None else Source(self.default_module)

    @property
    def student_sources(self) -> list[Source]:
        """The outputs of the student that are recorded in addition to :attr:`student`."""
        return []

    @property
    def teacher_sources(self) -> list[Source]:
        """The outputs of the teacher that are recorded in addition to :attr:`teacher`."""
        return []

    def check(self, student: Detector, teacher: Detector, options: dict[str, Any]) -> None:
        """Check that this alignment can pair the two models; called before the first iteration.

        Args:
            student: The student model.
            teacher: The teacher's model.
            options: The teacher's options, e.g. ``proposals`` and ``scale``. ``cached`` is True if the
                teacher is read from a cache.

        Raises:
            ConfigError: It cannot; the message names the reason and the correction.
        """

    def student_output(self, step: Step) -> Any:
        """Return the recorded output of the student."""
        return step.student_record[self.student]

    def run_teacher_layers(self, student: Any, step: Step) -> list[Tensor]:
        """Run the teacher's layers on the student's output, if :attr:`runs_teacher_layers`.

        :mod:`mmkd.analysis.training_cost` calls this method to measure its time.

        Args:
            student: The recorded output of the student, after the connector.
            step: The data of the step.
        """
        return []

    def __call__(self, student: Any, teacher: Any, step: Step) -> list[Pair]:
        """Pair the recorded outputs.

        Args:
            student: The recorded output of the student, after the connector.
            teacher: The recorded output of the teacher, after the connector.
            step: The data of the step.

        Returns:
            One pair per level. The loss is the mean over pairs.
        """
        raise NotImplementedError


def require_choice(option: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise a ConfigError if an option of an alignment is not one of its choices."""
    if value not in choices:
        raise ConfigError(f'align.{option}: must be one of {tuple(choices)}, got {value!r}')


def strides_of(generator: Any) -> list[tuple[float, float]]:
    """Return the horizontal and vertical stride of each level of a prior generator."""
    return [(s, s) if isinstance(s, (int, float)) else tuple(s) for s in generator.strides]


def common_strides(student: Any, teacher: Any, scale: float = 1.0) -> list[tuple[int, int]]:
    """Return the levels of two prior generators that have priors at the same positions.

    Args:
        student: The student's prior generator.
        teacher: The teacher's prior generator.
        scale: Size of the teacher's images relative to the student's.

    Returns:
        Pairs (index of the student's level, index of the teacher's level).
    """
    theirs = [tuple(side / scale for side in stride) for stride in strides_of(teacher)]
    return [
        (index, theirs.index(stride))
        for index, stride in enumerate(strides_of(student))
        if stride in theirs
    ]


def strides_and_scale(student: Any, teacher: Any, scale: float) -> str:
    """Return the strides of two prior generators, and the scale, as a text for messages."""
    ours, theirs = ([x for x, _ in strides_of(each)] for each in (student, teacher))
    text = f'strides {ours} (student) and {theirs} (teacher)'
    if scale != 1:
        text += (
            f' for images {scale:g} times as large; teacher.scale must be a power of two for priors'
        )
    return text


def stored_weights(weight: Tensor | None, stored: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights and divisor if a cache does not contain all rows.

    Args:
        weight: Weight of each row, shape (n,), or None: equal weights.
        stored: 1 for rows that the cache contains, else 0, shape (n,).

    Returns:
        The weights, shape (n,), and :attr:`Pair.total`. Rows that are not stored have weight 0, but they
        count in the divisor.
    """
    every = stored.new_ones(stored.shape) if weight is None else weight
    return every * stored, every.sum().clamp(min=1e-6)


def require_same_shape(student: Tensor, teacher: Tensor, what: str, hint: str = '') -> None:
    """Raise a ConfigError with both shapes if they differ; ``hint`` is appended to the message."""
    if student.shape != teacher.shape:
        raise ConfigError(
            f'{what}: student and teacher must have the same shape, got {tuple(student.shape)} and '
            f'{tuple(teacher.shape)}{hint}'
        )
