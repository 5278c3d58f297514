"""What every MMDetection detector has in common when it runs as teacher."""

from __future__ import annotations

from typing import Any

from mmdet.structures import SampleList
from torch import Tensor

from ..errors import ConfigError
from ..recorder import Recorder, Source
from ..types import Detector


class Family:
    """Runs the parts of a detector that losses read, and no others.

    A part is a stretch of the forward pass; ``parts`` maps the detector's attributes to them, and
    ``methods`` its own methods. This class has the one part that all detectors share, the features. A
    subclass adds the heads of its kind, without label assignment, post-processing or task losses.

    Some parts can only be compared on inputs that one of the two models chose: proposals, decoder
    queries. Parts for which the teacher chooses (:meth:`joint_parts`) are computed in a joint pass, after
    both models' own (:meth:`run_joint_parts`).

    Args:
        detector: The detector to run.
        options: Choices of the subclass, from the ``teacher`` config.
    """

    parts: dict[str, str] = dict(backbone='features', neck='features')
    methods: dict[str, str] = dict(extract_feat='features')

    def __init__(self, detector: Detector, **options: Any) -> None:
        if options:
            raise ConfigError(
                f'teacher: {type(detector).__name__} takes no option {", ".join(sorted(options))}'
            )
        self.detector = detector
        #: Choices that alignments may ask for, by name.
        self.options: dict[str, Any] = {}

    @classmethod
    def covers(cls, detector: Detector) -> bool:
        """Whether this family can run a detector."""
        return hasattr(detector, 'extract_feat')

    def part_of(self, source: Source) -> str:
        """The part that computes a source.

        Raises:
            ConfigError: No part of this family does.
        """
        if not source.module and source.method in self.methods:
            return self.methods[source.method]
        top = source.module.split('.')[0]
        if top not in self.parts:
            raise ConfigError(
                f"'{source}' cannot be recorded: of a {type(self.detector).__name__} mmkd runs only "
                f'{", ".join(self.parts)}'
            )
        return self.parts[top]

    def joint_part_of(self, source: Source) -> str:
        """The part that computes a source on inputs that the teacher chose for both models.

        Raises:
            ConfigError: This family shares no such inputs.
        """
        raise ConfigError(
            f'a {type(self.detector).__name__} has no decoder queries that a student could share'
        )

    def require_same_inputs(self, student: Detector, ours: Source, theirs: Source) -> None:
        """Refuse to compare what the two models would compute on different inputs.

        Args:
            student: The student model.
            ours: What is recorded of it.
            theirs: What is recorded of the detector.

        Raises:
            ConfigError: With what to record instead.
        """

    def num_classes(self) -> int | None:
        """Number of classes the classifier was built for, background not counted, or None."""
        head = getattr(self.detector, 'bbox_head', None)
        return getattr(head, 'num_classes', None)

    def student_sources(self, parts: set[str], student: Detector) -> list[Source]:
        """What the student must record so that the teacher's own pass can run."""
        return []

    def joint_sources(self, parts: set[str]) -> list[Source]:
        """What either model must record in its own pass so that the joint pass can run."""
        return []

    def joint_parts(self, parts: set[str]) -> set[str]:
        """Those of ``parts`` that both models compute on inputs that the teacher chose."""
        return set()

    def run(
        self,
        inputs: Tensor,
        data_samples: SampleList,
        parts: set[str],
        student: Recorder,
        scale: tuple[float, float] = (1.0, 1.0),
    ) -> dict[str, Any]:
        """Run ``parts`` on images, those of the joint pass only as far as to choose its inputs.

        Args:
            inputs: Normalised images, shape (N, 3, H, W).
            data_samples: Their meta information; ground truth is not read.
            parts: Names of parts.
            student: What the student recorded on the same images.
            scale: How much larger the images are than the student's, in width and in height.

        Returns:
            What student and teacher are both evaluated on, by name; positions in the student's pixels.
        """
        if parts:
            self.detector.extract_feat(inputs)
        return {}

    def run_joint_parts(
        self, model: Detector, recorded: Recorder, shared: dict[str, Any], parts: set[str]
    ) -> None:
        """Compute the joint parts of either model.

        Args:
            model: The student or the teacher's detector.
            recorded: What it recorded in its own pass.
            shared: What :meth:`run` gave, and ``scale``, as there.
            parts: Those of its parts that are read.
        """
