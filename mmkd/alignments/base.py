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


class Alignment:
    """Brings recorded outputs of student and teacher into correspondence.

    A subclass defines :meth:`__call__`. What it reads beside the two recorded outputs it lists in
    ``student_sources`` and ``teacher_sources``; what the two models must agree on it checks once, in
    :meth:`check`.
    """

    needs_class_map = False
    #: Whether both models are evaluated on queries that the teacher chose, in a pass of their own.
    joint = False
    #: The activation that the paired scores are meant for, where they are class scores.
    activation: str | None = None
    #: What :attr:`Pair.target` is, where the labels are known: the ``class`` of each row, as an index
    #: into its scores; a ``box``, the values that ``student`` should have; or the ``foreground`` of a map.
    target: str | None = None
    #: Whether the loss reads it; the loss entry says so.
    wants_target = False
    student: Source
    teacher: Source

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
            options: The teacher's family options, e.g. ``proposals``.

        Raises:
            ConfigError: With what does not fit and how to mend it.
        """

    def __call__(self, student: Any, teacher: Any, step: Step) -> list[Pair]:
        """Pair the recorded outputs.

        Args:
            student: Output of the student's recorded module, connector applied.
            teacher: Output of the teacher's.
            step: Everything else.
        """
        raise NotImplementedError


def require_same_shape(student: Tensor, teacher: Tensor, what: str, hint: str = '') -> None:
    """Raise a ConfigError that prints both shapes if they differ."""
    if student.shape != teacher.shape:
        raise ConfigError(
            f'{what}: student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in shape'
            f'{hint}'
        )
