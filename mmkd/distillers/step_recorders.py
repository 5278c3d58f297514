"""What to record in a step, and which parts of the teacher that asks for."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..families import family_of
from ..recorder import Recorder, Source
from .loss_entry import LossEntry
from .teacher import Teacher


class StepRecorders:
    """The recorders of student and teacher for one set of active losses.

    Args:
        entries: The active losses.
        student: The student.
        teacher: The teacher.
    """

    def __init__(self, entries: Sequence[LossEntry], student: nn.Module, teacher: Teacher) -> None:
        family = teacher.family
        parts_of = {}
        for entry in entries:
            with entry.blame():
                parts_of[entry.name] = entry.teacher_parts(family)
                # Looked up one by one, so that a wrong path is blamed on its entry.
                teacher.recorder(entry.teacher_sources)
                Recorder(student, entry.student_sources, owner='student')
                family.require_same_inputs(student, entry.student, entry.teacher)
        self.parts: set[str] = set().union(*parts_of.values())
        joint = family.joint_parts(self.parts)
        later = [entry for entry in entries if parts_of[entry.name] & joint]
        first = [entry for entry in entries if entry not in later]
        self.student = Recorder(
            student,
            _sources(first, 'student') + family.student_sources(self.parts, student),
            owner='student',
        )
        self.teacher = teacher.recorder(
            _sources(first, 'teacher') + family.teacher_sources(self.parts)
        )
        #: Recorders of the joint pass, student and teacher, or None where there is none.
        self.joint: tuple[Recorder, Recorder] | None = None
        #: The parts of either that it computes.
        self.joint_parts: tuple[set[str], set[str]] = (set(), joint)
        for entry in later:
            with entry.blame():
                self.joint_parts[0].update(map(family_of(student).part_of, entry.student_sources))
        if later:
            self.joint = (
                Recorder(student, _sources(later, 'student'), 'student'),
                teacher.recorder(_sources(later, 'teacher')),
            )
        own = (self.student, self.teacher)
        self.of = {entry.name: self.joint if entry in later else own for entry in entries}

    def clear(self) -> None:
        for recorder in (self.student, self.teacher, *(self.joint or ())):
            recorder.clear()


class PerModel(dict):
    """A cache that a copy of the model starts anew: what it holds points into the original's modules."""

    def __deepcopy__(self, memo: dict) -> PerModel:
        return PerModel()


def _sources(entries: Sequence[LossEntry], side: str) -> list[Source]:
    return [source for entry in entries for source in getattr(entry, f'{side}_sources')]
