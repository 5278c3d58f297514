"""What to record in a step, and which parts of the teacher that asks for."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

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
        self.parts: set[str] = set().union(*parts_of.values())
        again = family.follow_parts(self.parts)
        follows = [entry for entry in entries if parts_of[entry.name] & again]
        first = [entry for entry in entries if entry not in follows]
        self.student = Recorder(
            student,
            _sources(first, 'student') + family.student_sources(self.parts),
            owner='student',
        )
        self.follow = (
            Recorder(student, _sources(follows, 'student'), 'student') if follows else None
        )
        self.teacher = teacher.recorder(_sources(entries, 'teacher'))
        self.student_of = {
            entry.name: self.follow if entry in follows else self.student for entry in entries
        }

    def clear(self) -> None:
        for recorder in (self.student, self.follow, self.teacher):
            if recorder is not None:
                recorder.clear()


class PerModel(dict):
    """A cache that a copy of the model starts anew: what it holds points into the original's modules."""

    def __deepcopy__(self, memo: dict) -> PerModel:
        return PerModel()


def _sources(entries: Sequence[LossEntry], side: str) -> list[Source]:
    return [source for entry in entries for source in getattr(entry, f'{side}_sources')]
