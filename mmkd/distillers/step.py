"""The recorders of a training step, and the parts of each teacher that must run for them."""

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
        teachers: The teachers by name. Those that no active loss uses are ignored.
        class_maps: The class map of each teacher, by name.
    """

    def __init__(
        self,
        entries: Sequence[LossEntry],
        student: Detector,
        teachers: Mapping[str, Teacher],
        class_maps: Mapping[str, ClassMap],
    ) -> None:
        named = [name for name in teachers if any(name in entry.aligns for entry in entries)]
        #: One pass per teacher that the active losses use.
        self.passes = [
            TeacherPass(name, teachers[name], entries, student, class_maps.get(name))
            for name in named
        ]
        #: The passes that run before the student, and those that need outputs of the student.
        self.before_student = [each for each in self.passes if not each.needs_student]
        self.after_student = [each for each in self.passes if each.needs_student]
        self._sources = [source for each in self.passes for source in each.student_sources]
        self.student = Recorder(student, self._sources, owner='student')

    def run_joint_parts(self) -> None:
        """Run the student on the inputs that teachers chose, unless its own pass already did."""
        for each in self.passes:
            each.run_joint_parts(self.student)

    def steps(self, entry: LossEntry, data_samples: SampleList) -> dict[str, Step]:
        """Return the data of the step for a loss, by teacher."""
        return {
            each.name: each.step(entry, self.student, data_samples)
            for each in self.passes
            if each.name in entry.aligns
        }

    def parts_of(self, student: Detector) -> set[str]:
        """Return the parts of the student that must run for the recorded outputs, without its losses.

        Raises:
            ConfigError: A recorded output cannot be computed without labels.
        """
        family = family_of(student)
        for each in self.passes:
            for entry in each.own_entries:
                with entry.prefix_errors():
                    for source in entry.student_sources(each.name):
                        _require_no_labels(source, family)
        return {family.part_of(source) for source in self._sources}

    def clear(self) -> None:
        """Drop all recorded outputs and shared inputs; called after every step."""
        self.student.clear()
        for each in self.passes:
            each.clear()


class TeacherPass:
    """The forward pass of one teacher in a step: the parts that run, and the outputs that are recorded.

    Args:
        name: The name of the teacher.
        teacher: The teacher.
        entries: The active losses. Those that do not use this teacher are ignored.
        student: The student.
        class_map: The map between the student's and the teacher's classes.
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
                # One entry at a time, so that the message for a wrong path names the entry.
                teacher.recorder(entry.teacher_sources(name))
                Recorder(student, entry.student_sources(name), owner='student')
                family.require_same_inputs(student, entry.student, entry.teacher)
        #: The parts of the teacher that must run.
        self.parts: set[str] = set().union(*parts_of.values())
        joint = family.joint_parts(self.parts)
        joint_entries = [entry for entry in entries if parts_of[entry.name] & joint]
        #: The losses that compare outputs of each model's own pass, not of the joint pass.
        self.own_entries = [entry for entry in entries if entry not in joint_entries]
        #: The recorded outputs of the teacher.
        self.sources = list(dict.fromkeys(s for e in entries for s in e.teacher_sources(name)))
        inputs, ends = family.student_sources(self.parts, student), family.joint_sources(self.parts)
        #: Whether the teacher needs outputs of the student as inputs.
        self.needs_student = bool(inputs)
        #: The outputs to record in the student's own pass.
        self.student_sources = [*inputs, *ends] + [
            source for entry in self.own_entries for source in entry.student_sources(name)
        ]
        own = [source for entry in self.own_entries for source in entry.teacher_sources(name)]
        self.recorder = teacher.recorder(own + ends)
        #: The recorders of the joint pass, for student and teacher; None without a joint pass.
        self.joint_recorders: tuple[Recorder, Recorder] | None = None
        self._joint_parts: tuple[set[str], set[str]] = (set(), joint)
        self._joint_names = {entry.name for entry in joint_entries}
        for entry in joint_entries:
            with entry.prefix_errors():
                if len(entry.aligns) > 1:
                    raise ConfigError(
                        'teacher_name: must name one teacher, because outputs for inputs that one teacher '
                        'chose cannot be averaged over several; write one entry per teacher'
                    )
                sources = entry.student_sources(name)
                self._joint_parts[0].update(map(family_of(student).part_of, sources))
        if joint_entries:
            ours, theirs = (
                [source for entry in joint_entries for source in getattr(entry, side)(name)]
                for side in ('student_sources', 'teacher_sources')
            )
            self.joint_recorders = (Recorder(student, ours, 'student'), teacher.recorder(theirs))
        #: The inputs that both models are evaluated on in this step, by name.
        self.shared: dict[str, Any] = {}
        self._memo: dict[Any, Any] = {}

    def run_teacher(
        self,
        inputs: Tensor,
        data_samples: SampleList,
        preprocessor: BaseDataPreprocessor,
        student: Recorder,
    ) -> None:
        """Run the parts of the teacher that losses read, including its joint parts.

        Args:
            inputs: Images from the student's preprocessor, shape (N, 3, H, W).
            data_samples: The meta information of the images.
            preprocessor: The student's data preprocessor.
            student: The student's recorder. It has run on these images if :attr:`needs_student`.
        """
        with self.recorder:
            self.shared = self.teacher.run(inputs, data_samples, preprocessor, self.parts, student)
        if self.joint_recorders is not None:
            with self.joint_recorders[1]:
                self.teacher.run_joint_parts(self.recorder, self.shared, self._joint_parts[1])

    def run_joint_parts(self, student: Recorder) -> None:
        """Run the student on the inputs that the teacher chose, unless it already has."""
        joint = None if self.joint_recorders is None else self.joint_recorders[0]
        if joint is None or all(source in joint for source in joint.sources):
            return
        with joint:
            self.teacher.family.run_joint_parts(
                self.student, student, self.shared, self._joint_parts[0]
            )

    def recorder_of(self, source: Source) -> Recorder:
        """Return the recorder that has a source of the teacher."""
        if self.joint_recorders is not None and source in self.joint_recorders[1]:
            return self.joint_recorders[1]
        return self.recorder

    def step(self, entry: LossEntry, student: Recorder, data_samples: SampleList) -> Step:
        """Return the data of the step for one loss."""
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
        """Drop the recorded outputs and shared inputs of the step."""
        self.shared, self._memo = {}, {}
        for recorder in (self.recorder, *(self.joint_recorders or ())):
            recorder.clear()


class UncopiedDict(dict):
    """A dict that is empty in a deep copy of its owner, because it refers to the original's modules."""

    def __deepcopy__(self, memo: dict) -> UncopiedDict:
        return UncopiedDict()


def _require_no_labels(source: Source, family: Family) -> None:
    """Raise a ConfigError for an output that a student computes only with its own losses."""
    if family.part_of(source).startswith('roi'):
        raise ConfigError(
            'with task_losses=False the student samples no proposals, because it has no labels; set '
            "teacher.proposals='teacher'"
        )
    if source.method == 'get_targets' or source.module.rpartition('.')[2].startswith('loss_'):
        raise ConfigError(
            f"with task_losses=False {source} is not computed, because it belongs to the student's own "
            f'losses; record an output that needs no labels'
        )
