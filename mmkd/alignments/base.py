"""The interface of an alignment, what it reads and what it returns."""

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
    """Corresponding values of student and teacher, ready for a loss.

    Values are rows (proposals, anchors, queries: the loss compares them one by one and takes the
    weighted mean) or maps.

    Args:
        student: Rows, shape (n, width), or maps, shape (N, C, H, W).
        teacher: The same shape, without gradient.
        weight: Weight of each entry of the first dimension, or None: all count alike.
        target: Per entry, from the labels, or None; of which kind, :attr:`Alignment.target` names.
        mask: The positions of maps that count, bool, shape (N, H, W), or None: all.
        total: The divisor of the sum over entries, or None: the sum of their weights, or their number.
            Entries that add nothing to the sum, but count in its divisor, are part of it.
    """

    student: Tensor
    teacher: Tensor
    weight: Tensor | None = None
    target: Tensor | None = None
    mask: Tensor | None = None
    total: Tensor | float | None = None

    @property
    def weight_sum(self) -> Tensor:
        """Sum of the weights, or the number of entries: the divisor of a loss's own mean."""
        if self.weight is None:
            return self.student.new_full((), len(self.student), dtype=torch.float)
        return self.weight.float().sum()

    @property
    def divisor(self) -> Tensor | float:
        """:attr:`total`, or its default."""
        return self.weight_sum if self.total is None else self.total


@dataclass
class Step:
    """The data of one training step that alignments read.

    Args:
        data_samples: The batch's meta information and ground truth.
        student: The student model.
        teacher: The teacher's model.
        student_record: Recorded outputs of the student.
        teacher_record: Recorded outputs of the teacher.
        class_map: Correspondence of classes; None, and not read, when no alignment needs it.
        shared: Inputs both were evaluated on, by name (:meth:`mmkd.families.Family.run`).
        memo: Results that several loss entries of a step share, by any key.
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
        """The positions or priors of a teacher's output that its cache holds, None where it holds all.

        Returns:
            A mask per level, bool, shape (N, 1 or priors per position, H, W).
        """
        return self.shared.get('stored_masks', {}).get(source)

    @property
    def scale(self) -> tuple[float, float]:
        """How much larger the teacher's images are than the student's, in width and in height."""
        return self.shared.get('scale', (1.0, 1.0))


class Alignment:
    """Pairs recorded outputs of student and teacher.

    A subclass defines :meth:`__call__`, and, where it needs to, :meth:`check` and the properties
    :attr:`student_sources` and :attr:`teacher_sources`. All else that other parts of mmkd read of
    it is in the attributes below, each a class attribute, an attribute set in :meth:`check`, or a
    property. The loss entry (:class:`mmkd.distillers.LossEntry`) reads them, unless said otherwise.

    Calls come in this order: :meth:`bind` and :meth:`check` for each pair of models, the sources, then
    :meth:`student_output` and :meth:`__call__` in every step.
    """

    #: The module to record of either model where the entry names none, e.g. ``bbox_head``. None: the
    #: entry must name one. :meth:`default_source` turns it into a source.
    default_module: str | None = None

    # ---- What the values are; a loss that takes others is refused.

    #: The activation that paired class scores are meant for, ``softmax`` or ``sigmoid``; None for other
    #: values. The mean over several teachers is taken of probabilities then.
    activation: str | None = None
    #: The format of paired boxes, ``cxcywh`` or ``xyxy``; None where it pairs no boxes, or either format.
    box_format: str | None = None
    #: The kind of :attr:`Pair.target`: ``class``, the index of a row's labelled class among its scores;
    #: ``box``, the values that ``student`` should have; ``foreground`` of a map; None: there is none.
    target: str | None = None

    # ---- How the mean is taken.

    @property
    def reduces_over_ranks(self) -> bool:
        """Whether the mean is over the entries of all ranks; then each must return equally many pairs."""
        return False

    # ---- What it needs.

    #: Whether it reads :attr:`Step.class_map`. The distiller pairs the classes of both models for it.
    needs_class_map = False
    #: Whether both models are evaluated on queries that the teacher chose, in a pass of their own.
    joint = False

    @property
    def runs_teacher_layers(self) -> bool:
        """Whether the teacher's layers run on the student's output (CrossKD)."""
        return False

    # ---- What an entry sets, in :meth:`bind`.

    #: The recorded outputs of student and teacher.
    student: Source = None  # type: ignore[assignment]
    teacher: Source = None  # type: ignore[assignment]
    #: Whether the loss reads :attr:`Pair.target`, which may be costly to compute.
    needs_target = False
    #: Whether a connector maps the student's output before it is paired.
    connected = False

    @property
    def can_average_teachers(self) -> bool:
        """Whether the rows do not depend on the teacher, so that values of several can be averaged."""
        return True

    def bind(
        self, student: Source | None, teacher: Source | None, needs_target: bool = False
    ) -> None:
        """Take what the loss entry has decided: the outputs to compare, and :attr:`needs_target`."""
        if student is not None:
            self.student = student
        if teacher is not None:
            self.teacher = teacher
        self.needs_target = needs_target

    def default_source(self, owner: str, model: Detector) -> Source | None:
        """The output to record where the entry names none.

        Args:
            owner: ``student`` or ``teacher``.
            model: That model.
        """
        return None if self.default_module is None else Source(self.default_module)

    @property
    def student_sources(self) -> list[Source]:
        """What it reads of the student beside :attr:`student`."""
        return []

    @property
    def teacher_sources(self) -> list[Source]:
        """What it reads of the teacher beside :attr:`teacher`."""
        return []

    def check(self, student: Detector, teacher: Detector, options: dict[str, Any]) -> None:
        """Refuse a pair of models that this alignment cannot pair, before the first iteration.

        Args:
            student: The student model.
            teacher: The teacher's model.
            options: The teacher's options, e.g. ``proposals`` and ``scale``; ``cached`` where it is read
                from a cache.

        Raises:
            ConfigError: With what does not fit and how to correct it.
        """

    def student_output(self, step: Step) -> Any:
        """The recorded output of the student."""
        return step.student_record[self.student]

    def run_teacher_layers(self, student: Any, step: Step) -> list[Tensor]:
        """The outputs of the teacher's layers for the student's output, where :attr:`runs_teacher_layers`.

        :mod:`mmkd.analysis.training_cost` measures the time they take.

        Args:
            student: Output of the student's recorded module, connector applied.
            step: The data of the step.
        """
        return []

    def __call__(self, student: Any, teacher: Any, step: Step) -> list[Pair]:
        """Pair the recorded outputs.

        Args:
            student: Output of the student's recorded module, connector applied.
            teacher: Output of the teacher's.
            step: The data of the step.
        """
        raise NotImplementedError


def one_of(option: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise a ConfigError unless an option of an alignment is one of its choices."""
    if value not in choices:
        raise ConfigError(f'align.{option}: must be one of {tuple(choices)}, got {value!r}')


def strides_of(generator: Any) -> list[tuple[float, float]]:
    """Horizontal and vertical stride of each level of a prior generator."""
    return [(s, s) if isinstance(s, (int, float)) else tuple(s) for s in generator.strides]


def common_strides(student: Any, teacher: Any, scale: float = 1.0) -> list[tuple[int, int]]:
    """Levels of two prior generators that have their priors at the same positions.

    Args:
        student: The student's generator.
        teacher: The teacher's.
        scale: How much larger the teacher's images are.

    Returns:
        Indices of the student's and of the teacher's level.
    """
    theirs = [tuple(side / scale for side in stride) for stride in strides_of(teacher)]
    return [
        (index, theirs.index(stride))
        for index, stride in enumerate(strides_of(student))
        if stride in theirs
    ]


def strides_and_scale(student: Any, teacher: Any, scale: float) -> str:
    """The strides of two prior generators, for a message."""
    ours, theirs = ([x for x, _ in strides_of(each)] for each in (student, teacher))
    text = f'strides {ours} (student) and {theirs} (teacher)'
    if scale != 1:
        text += (
            f', of images {scale:g} times as large; teacher.scale must be a power of two for priors'
        )
    return text


def weights_of_stored(weight: Tensor | None, stored: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and divisor where a cache does not hold all rows.

    Args:
        weight: Weight of each row, shape (n,), or None: all count alike.
        stored: 1 for rows that the cache holds, else 0, shape (n,).

    Returns:
        Weights, shape (n,), and :attr:`Pair.total`: rows that are not stored add nothing to the sum, but
        count in its divisor.
    """
    every = stored.new_ones(stored.shape) if weight is None else weight
    return every * stored, every.sum().clamp(min=1e-6)


def require_same_shape(student: Tensor, teacher: Tensor, what: str, hint: str = '') -> None:
    """Raise a ConfigError that prints both shapes if they differ."""
    if student.shape != teacher.shape:
        raise ConfigError(
            f'{what}: student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in shape'
            f'{hint}'
        )
