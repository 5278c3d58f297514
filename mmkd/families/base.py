"""The base class of all families: runs backbone and neck of any MMDetection detector."""

from __future__ import annotations

from typing import Any

from mmdet.structures import SampleList
from torch import Tensor

from ..errors import ConfigError
from ..recorder import Recorder, Source
from ..types import Detector


class Family:
    """Runs only those parts of a detector that losses read.

    A part is a section of the forward pass. ``parts`` maps attributes of the detector to parts;
    ``methods`` does the same for its methods. This class has one part, the features, which all detectors
    share. A subclass adds the heads of its kind, without label assignment, post-processing or task losses.

    Some parts, such as box heads and decoders, can be compared only on the same inputs: proposals or
    decoder queries that one of the two models chose. If the teacher chooses them (:meth:`joint_parts`),
    both models run on them in a joint pass (:meth:`run_joint_parts`) after their own passes.

    Args:
        detector: The detector to run.
        options: Options of the subclass, from the ``teacher`` config.

    Examples:
        >>> from mmengine.hub import get_model
        >>> from mmkd.families import Family
        >>> from mmkd.recorder import Source
        >>> family = Family(get_model('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'))
        >>> family.part_of(Source('neck.fpn_convs.0'))
        'features'
        >>> family.num_classes()
        80
    """

    #: Attributes of the detector, with the part that computes them.
    parts: dict[str, str] = dict(backbone='features', neck='features')
    #: Methods of the detector, with the part that calls them.
    methods: dict[str, str] = dict(extract_feat='features')

    def __init__(self, detector: Detector, **options: Any) -> None:
        if options:
            raise ConfigError(
                f'teacher: a {type(detector).__name__} has no option {", ".join(sorted(options))}; remove it'
            )
        self.detector = detector
        #: Options that alignments read, by name.
        self.options: dict[str, Any] = {}

    @classmethod
    def covers(cls, detector: Detector) -> bool:
        """Return whether this family can run a detector."""
        return hasattr(detector, 'extract_feat')

    def part_of(self, source: Source) -> str:
        """Return the part that computes a source.

        Raises:
            ConfigError: No part of this family computes it.
        """
        if not source.module and source.method in self.methods:
            return self.methods[source.method]
        top = source.module.split('.')[0]
        if top not in self.parts:
            raise ConfigError(
                f"'{source}' cannot be recorded: mmkd runs only {', '.join(self.parts)} of a "
                f'{type(self.detector).__name__}; record a module of these'
            )
        return self.parts[top]

    def joint_part_of(self, source: Source) -> str:
        """Return the part that computes a source in the joint pass, on inputs that the teacher chose.

        Raises:
            ConfigError: This family has no joint pass.
        """
        raise ConfigError(
            f'align: the teacher must have decoder queries to share, but a '
            f'{type(self.detector).__name__} has none; use another alignment'
        )

    def require_same_inputs(self, student: Detector, ours: Source, theirs: Source) -> None:
        """Check that the two models compute the recorded outputs on the same inputs.

        Args:
            student: The student model.
            ours: The recorded output of the student.
            theirs: The recorded output of this detector.

        Raises:
            ConfigError: They do not; the message names what to record instead.
        """

    def num_classes(self) -> int | None:
        """Return the number of classes of the classifier, without the background; None if unknown."""
        head = getattr(self.detector, 'bbox_head', None)
        return getattr(head, 'num_classes', None)

    def student_sources(self, parts: set[str], student: Detector) -> list[Source]:
        """Return the student's outputs that the teacher's own pass needs as inputs."""
        return []

    def joint_sources(self, parts: set[str]) -> list[Source]:
        """Return the outputs of each model's own pass that the joint pass needs as inputs."""
        return []

    def joint_parts(self, parts: set[str]) -> set[str]:
        """Return those of ``parts`` that both models compute in the joint pass."""
        return set()

    def run(
        self,
        inputs: Tensor,
        data_samples: SampleList,
        parts: set[str],
        student: Recorder,
        scale: tuple[float, float] = (1.0, 1.0),
    ) -> dict[str, Any]:
        """Run ``parts`` on a batch. For joint parts, only choose the inputs.

        Args:
            inputs: Normalised images, shape (N, 3, H, W).
            data_samples: The meta information of the images. The ground truth is not read.
            parts: Names of the parts to run.
            student: The student's recorder, which ran on the same images.
            scale: Width and height of the images relative to the student's.

        Returns:
            The inputs that both models are evaluated on, by name, with positions in the student's pixels.
        """
        if parts:
            self.detector.extract_feat(inputs)
        return {}

    def run_joint_parts(
        self, model: Detector, recorded: Recorder, shared: dict[str, Any], parts: set[str]
    ) -> None:
        """Run the joint parts of one of the two models.

        Args:
            model: The student or the teacher's detector.
            recorded: The recorder of this model's own pass.
            shared: The result of :meth:`run`, and its argument ``scale``.
            parts: The parts of this model to run.
        """
