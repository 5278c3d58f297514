"""What is recorded in a step, and which parts of which teacher that asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmdet.structures import SampleList
from mmengine.model import BaseDataPreprocessor
from torch import Tensor

from ..alignments import ClassMap, Step
from ..errors import ConfigError
from ..families import Family, family_of
from ..recorder import Recorder, Source
from ..teachers import Teacher
from ..types import Detector
from .loss_entry import LossEntry


class StepRecorders:
    """The recorders of student and teachers for one set of active losses.

    Args:
        entries: The active losses.
        student: The student.
        teachers: The teachers by name; those that no loss names are passed over.
        class_maps: Which class is which, by teacher.
    """

    def __init__(
        self,
        entries: Sequence[LossEntry],
        student: Detector,
        teachers: Mapping[str, Teacher],
        class_maps: Mapping[str, ClassMap],
    ) -> None:
        named = [name for name in teachers if any(name in entry.aligns for entry in entries)]
        #: What each teacher does in the step.
        self.passes = [
            TeacherPass(name, teachers[name], entries, student, class_maps.get(name))
            for name in named
        ]
        #: Those that run before the student, and those that look at what it computed.
        self.before_student = [each for each in self.passes if not each.needs_student]
        self.after_student = [each for each in self.passes if each.needs_student]
        self._sources = [source for each in self.passes for source in each.student_sources]
        self.student = Recorder(student, self._sources, owner='student')

    def run_joint_parts(self) -> None:
        """Run the student on what teachers chose, as far as its own pass did not."""
        for each in self.passes:
            each.run_joint_parts(self.student)

    def steps(self, entry: LossEntry, data_samples: SampleList) -> dict[str, Step]:
        """What a loss reads, by teacher."""
        return {
            each.name: each.step(entry, self.student, data_samples)
            for each in self.passes
            if each.name in entry.aligns
        }

    def parts_of(self, student: Detector) -> set[str]:
        """The parts of the student, as if it were a teacher, that compute what is recorded of it.

        Raises:
            ConfigError: One of them cannot run without labels.
        """
        family = family_of(student)
        for each in self.passes:
            for entry in each.own_entries:
                with entry.prefix_errors():
                    for source in entry.student_sources(each.name):
                        _require_no_labels(source, family)
        return {family.part_of(source) for source in self._sources}

    def clear(self) -> None:
        self.student.clear()
        for each in self.passes:
            each.clear()


class TeacherPass:
    """One teacher's share of a step: what runs, what is recorded, what the losses read.

    Args:
        name: The teacher's name.
        teacher: The teacher.
        entries: The active losses; those of other teachers are passed over.
        student: The student.
        class_map: Which class is which.
    """

    def __init__(
        self,
        name: str,
        teacher: Teacher,
        entries: Sequence[LossEntry],
        student: Detector,
        class_map: ClassMap | None,
    ) -> None:
        self.name, self.teacher, self.student, self.class_map = name, teacher, student, class_map
        entries = [entry for entry in entries if name in entry.aligns]
        family = teacher.family
        parts_of = {}
        for entry in entries:
            with entry.prefix_errors():
                parts_of[entry.name] = entry.teacher_parts(name, family)
                # Looked up one by one, so that a wrong path is blamed on its entry.
                teacher.recorder(entry.teacher_sources(name))
                Recorder(student, entry.student_sources(name), owner='student')
                family.require_same_inputs(student, entry.student, entry.teacher)
        #: The parts of the teacher that are read.
        self.parts: set[str] = set().union(*parts_of.values())
        joint = family.joint_parts(self.parts)
        joint_entries = [entry for entry in entries if parts_of[entry.name] & joint]
        #: The losses that compare what both computed on inputs of their own.
        self.own_entries = [entry for entry in entries if entry not in joint_entries]
        #: What is recorded of the teacher.
        self.sources = list(dict.fromkeys(s for e in entries for s in e.teacher_sources(name)))
        #: What the student must record in its own pass.
        inputs, ends = family.student_sources(self.parts, student), family.joint_sources(self.parts)
        #: Whether it runs on what the student has computed.
        self.needs_student = bool(inputs)
        self.student_sources = [*inputs, *ends] + [
            source for entry in self.own_entries for source in entry.student_sources(name)
        ]
        own = [source for entry in self.own_entries for source in entry.teacher_sources(name)]
        self.recorder = teacher.recorder(own + ends)
        #: Recorders of the joint pass, student and teacher, or None where there is none.
        self.joint_recorders: tuple[Recorder, Recorder] | None = None
        self._joint_parts: tuple[set[str], set[str]] = (set(), joint)
        self._joint_names = {entry.name for entry in joint_entries}
        for entry in joint_entries:
            with entry.prefix_errors():
                if len(entry.aligns) > 1:
                    raise ConfigError(
                        'teacher_name: what is computed on inputs that one teacher chose cannot be averaged '
                        'over several'
                    )
                sources = entry.student_sources(name)
                self._joint_parts[0].update(map(family_of(student).part_of, sources))
        if joint_entries:
            ours, theirs = (
                [source for entry in joint_entries for source in getattr(entry, side)(name)]
                for side in ('student_sources', 'teacher_sources')
            )
            self.joint_recorders = (Recorder(student, ours, 'student'), teacher.recorder(theirs))
        #: What both models are evaluated on in this step, by name.
        self.shared: dict[str, Any] = {}
        self._memo: dict[Any, Any] = {}

    def run_teacher(
        self,
        inputs: Tensor,
        data_samples: SampleList,
        preprocessor: BaseDataPreprocessor,
        student: Recorder,
    ) -> None:
        """Run the teacher as far as it is read, what it chooses for both models included.

        Args:
            inputs: Images as the student's preprocessor made them, shape (N, 3, H, W).
            data_samples: Their meta information.
            preprocessor: The student's.
            student: What the student recorded on the same images, if :attr:`needs_student`.
        """
        with self.recorder:
            self.shared = self.teacher.run(inputs, data_samples, preprocessor, self.parts, student)
        if self.joint_recorders is not None:
            with self.joint_recorders[1]:
                self.teacher.run_joint_parts(self.recorder, self.shared, self._joint_parts[1])

    def run_joint_parts(self, student: Recorder) -> None:
        """Run the student on what the teacher chose, unless it has."""
        joint = None if self.joint_recorders is None else self.joint_recorders[0]
        if joint is None or all(source in joint for source in joint.sources):
            return
        with joint:
            self.teacher.family.run_joint_parts(
                self.student, student, self.shared, self._joint_parts[0]
            )

    def recorder_of(self, source: Source) -> Recorder:
        """Where a source of the teacher was recorded."""
        if self.joint_recorders is not None and source in self.joint_recorders[1]:
            return self.joint_recorders[1]
        return self.recorder

    def step(self, entry: LossEntry, student: Recorder, data_samples: SampleList) -> Step:
        """What a loss gets to see."""
        records = (student, self.recorder)
        if self.joint_recorders is not None and entry.name in self._joint_names:
            records = self.joint_recorders
        return Step(
            data_samples=data_samples,
            student=self.student,
            teacher=self.teacher.detector,
            student_record=records[0],
            teacher_record=records[1],
            class_map=self.class_map,  # type: ignore[arg-type]  # see Step
            shared=self.shared,
            memo=self._memo,
        )

    def clear(self) -> None:
        self.shared, self._memo = {}, {}
        for recorder in (self.recorder, *(self.joint_recorders or ())):
            recorder.clear()


class UncopiedDict(dict):
    """A cache that a copy of the model starts anew: what it holds points into the original's modules."""

    def __deepcopy__(self, memo: dict) -> UncopiedDict:
        return UncopiedDict()


def _require_no_labels(source: Source, family: Family) -> None:
    """Refuse what a student without losses of its own does not compute."""
    if family.part_of(source).startswith('roi'):
        raise ConfigError(
            'task_losses=False: without labels the student draws no proposals of its own; set '
            "teacher.proposals='teacher'"
        )
    if source.method == 'get_targets' or source.module.rpartition('.')[2].startswith('loss_'):
        raise ConfigError(
            f"task_losses=False: {source} belongs to the student's own losses, which are not computed; "
            f'choose what is compared without labels'
        )
