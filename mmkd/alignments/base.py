"""What an alignment gets and gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mmdet.structures import SampleList
from torch import Tensor, nn

from ..errors import ConfigError
from ..recorder import Recorder, Source
from .class_map import ClassMap


@dataclass
class Pair:
    """Student and teacher values that mean the same thing, ready for a loss.

    Args:
        student: Tensor of any shape.
        teacher: Tensor of the same shape, without gradient.
        weight: How much each entry of the first dimension counts, or None for all alike.
        target: What the labels say of each entry, where the alignment knows it; of which kind, its
            ``target`` says.
        scale: What the mean over entries is multiplied by, for a sum over something else than their
            number or weights.
    """

    student: Tensor
    teacher: Tensor
    weight: Tensor | None = None
    target: Tensor | None = None
    scale: Tensor | float = 1.0


@dataclass
class Step:
    """All that one training step knows; alignments read it.

    Args:
        data_samples: The batch's meta information and ground truth.
        student: The student model.
        teacher: The teacher's model.
        student_record: What the student computed.
        teacher_record: What the teacher computed.
        class_map: Which class is which; None when no class-aware alignment is in use.
        shared: Inputs both were evaluated on, by name (:meth:`mmkd.families.Family.run`).
        memo: What one loss entry computed and others of the same step need too, by any key.
    """

    data_samples: SampleList
    student: nn.Module
    teacher: nn.Module
    student_record: Recorder
    teacher_record: Recorder
    class_map: ClassMap | None = None
    shared: dict[str, Any] = field(default_factory=dict)
    memo: dict[Any, Any] = field(default_factory=dict)

    def known(self, source: Source | None) -> list[Tensor] | None:
        """Of each map of a teacher's output what of it is known, None where all is.

        A cached teacher has not said something about every place (:mod:`mmkd.cache`).

        Returns:
            Masks, shape (N, 1 or priors a place, H, W) each.
        """
        return self.shared.get('known', {}).get(source)

    @property
    def scale(self) -> tuple[float, float]:
        """How much larger the teacher's images are than the student's, in width and in height."""
        return self.shared.get('scale', (1.0, 1.0))


class Alignment:
    """Brings recorded outputs of student and teacher into correspondence.

    A subclass defines :meth:`__call__`. What it reads beside the two recorded outputs it lists in
    ``student_sources`` and ``teacher_sources``; what the two models must agree on it checks once, in
    :meth:`check`.
    """

    needs_class_map = False
    #: Whether both models are evaluated on queries that the teacher chose, in a pass of their own.
    joint = False
    #: Whether the teacher's own layers lie between student and loss, and much is held for the way back.
    is_deep = False
    #: The activation that the paired scores are meant for, where they are class scores.
    activation: str | None = None
    #: What :attr:`Pair.target` is, where the labels are known: the ``class`` of each row, as an index
    #: into its scores; a ``box``, the values that ``student`` should have; or the ``foreground`` of a map.
    target: str | None = None
    #: Whether means are over the rows of all ranks: a rank with more of them, or weightier ones, counts more.
    #: Of this an alignment must give the same number of pairs on every rank. Otherwise ranks count alike.
    reduces_over_ranks = False
    #: Whether the loss reads it; the loss entry says so.
    wants_target = False
    #: What the loss entry records of either model, once it is bound.
    student: Source | None = None
    teacher: Source | None = None

    @property
    def rows_are_fixed(self) -> bool:
        """Whether what is compared does not depend on the teacher, so that several can be averaged."""
        return True

    def bind(self, student: Source, teacher: Source) -> None:
        """Learn what the loss entry records of either model; called once, before all else."""
        self.student, self.teacher = student, teacher

    @property
    def student_sources(self) -> list[Source]:
        return []

    @property
    def teacher_sources(self) -> list[Source]:
        return []

    def check(self, student: nn.Module, teacher: nn.Module, options: dict[str, Any]) -> None:
        """Refuse a pair of models that this alignment cannot bring together.

        Args:
            student: The student model.
            teacher: The teacher's model.
            options: The teacher's options, e.g. ``proposals`` and ``scale``; ``cached`` where it is read
                from a cache.

        Raises:
            ConfigError: With what does not fit and how to mend it.
        """

    def teacher_on(self, student: Any, step: Step) -> list[Tensor]:
        """What the teacher's own layers make of the student's output, where they are asked to.

        Their share of a step is the teacher's, not the loss's (:mod:`mmkd.analysis.training_cost`).

        Args:
            student: Output of the student's recorded module, connector applied.
            step: Everything else.
        """
        return []

    def __call__(self, student: Any, teacher: Any, step: Step) -> list[Pair]:
        """Pair the recorded outputs.

        Args:
            student: Output of the student's recorded module, connector applied.
            teacher: Output of the teacher's.
            step: Everything else.
        """
        raise NotImplementedError


def strides_of(generator: Any) -> list[tuple[float, float]]:
    """Strides of a prior generator's levels, across and down."""
    return [(s, s) if isinstance(s, (int, float)) else tuple(s) for s in generator.strides]


def common_strides(student: Any, teacher: Any, scale: float = 1.0) -> list[tuple[int, int]]:
    """Levels of two prior generators that lay their priors on the same places.

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
    """What a message says of levels that do not meet."""
    ours, theirs = ([across for across, _ in strides_of(each)] for each in (student, teacher))
    text = f'strides {ours} (student) and {theirs} (teacher)'
    if scale != 1:
        text += f', of images {scale:g} times as large; heads that lay priors need a power of two'
    return text


def count_known(weight: Tensor | None, known: Tensor) -> tuple[Tensor, Tensor]:
    """Weights that leave out what a teacher has not said, and what the mean over the rest then lacks.

    Args:
        weight: How much each row would count, shape (n,), None for all alike.
        known: 1 for rows that the teacher has said something about, else 0, shape (n,).

    Returns:
        Weights, shape (n,), and :attr:`Pair.scale`: rows that are left out add nothing to the sum, but
        count in its divisor.
    """
    every = known.new_ones(known.shape) if weight is None else weight
    counted = every * known
    return counted, counted.sum() / every.sum().clamp(min=1e-6)


def require_same_shape(student: Tensor, teacher: Tensor, what: str, hint: str = '') -> None:
    """Raise a ConfigError that prints both shapes if they differ."""
    if student.shape != teacher.shape:
        raise ConfigError(
            f'{what}: student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in shape'
            f'{hint}'
        )
