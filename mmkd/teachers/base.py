"""The interface of all teachers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mmdet.structures import SampleList
from mmengine.model import BaseDataPreprocessor
from torch import Tensor

from ..alignments import ClassMap
from ..families import Family
from ..recorder import Recorder, Source
from ..types import Detector


class Teacher:
    """The interface that the training step and the losses use for all kinds of teachers.

    A teacher is deliberately not an ``nn.Module``. Code that walks a model's modules (optimizer,
    ``state_dict``, ``train()``, EMA, DDP) does not reach it. A deep copy of its owner shares it.

    A subclass sets the attributes below and defines :meth:`recorder` and :meth:`run`.

    Examples:
        >>> from mmengine.hub import get_model
        >>> from mmkd.families import family_of
        >>> from mmkd.teachers import Teacher
        >>> class MyTeacher(Teacher):
        ...     def __init__(self, detector, scale=1.0):
        ...         self.detector, self.family, self.scale = detector, family_of(detector), scale
        >>> teacher = MyTeacher(get_model('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'), scale=2.0)
        >>> teacher.options
        {'scale': 2.0}
        >>> teacher.num_parameters()
        21410100
    """

    #: The frozen detector. Alignments read the settings of its heads.
    detector: Detector
    #: The family, which runs the parts of the detector.
    family: Family
    #: The class names in the order of the outputs, or None if unknown.
    classes: tuple[str, ...] | None
    #: The error that explains why the class names are unknown, if there is a special reason.
    classes_error: str | None = None
    #: Width and height of the teacher's images relative to the student's.
    scale: float = 1.0

    @property
    def options(self) -> dict[str, Any]:
        """Options that alignments read, by name: those of the family, and ``scale``."""
        return dict(self.family.options, scale=self.scale)

    @property
    def origin(self) -> str:
        """The source of the outputs, such as a checkpoint, for the log."""
        raise NotImplementedError

    def num_parameters(self) -> int:
        """Return the number of parameters of the whole detector."""
        return sum(parameter.numel() for parameter in self.detector.parameters())

    def require(self, entries: Iterable[Any], name: str, class_map: ClassMap | None) -> None:
        """Check that the teacher can provide the outputs that losses read. A live detector always can.

        Args:
            entries: The loss entries that use this teacher.
            name: The name of the teacher.
            class_map: The map between its classes and the student's, if a loss reads classes.
        """

    def prepare_data(self, dataset: Any, preprocessor: BaseDataPreprocessor | None = None) -> None:
        """Check that the teacher can process the images of a training run. A live detector always can.

        Args:
            dataset: The data set of the training run.
            preprocessor: The student's data preprocessor.
        """

    def recorder(self, sources: Sequence[Source]) -> Recorder:
        """Return a recorder of the teacher's modules.

        The recorder returns float32 at any precision of the forward pass. It crops maps to the student's
        image size if the teacher pads images further (``pad_size_divisor``).
        """
        raise NotImplementedError

    def run(
        self,
        inputs: Tensor,
        data_samples: SampleList,
        preprocessor: BaseDataPreprocessor,
        parts: set[str],
        student: Recorder,
    ) -> dict[str, Any]:
        """Run the parts that losses read; see :meth:`mmkd.families.Family.run`.

        Args:
            inputs: Images in the student's normalisation, shape (N, 3, H, W).
            data_samples: The meta information of the images.
            preprocessor: The student's data preprocessor, which normalised ``inputs``.
            parts: Names of the parts to run.
            student: The student's recorder.

        Returns:
            The inputs that both models are evaluated on, by name, and ``scale``: width and height of the
            teacher's images relative to the student's.
        """
        raise NotImplementedError

    def run_joint_parts(self, recorded: Recorder, shared: dict[str, Any], parts: set[str]) -> None:
        """Run the teacher's joint parts; see :meth:`mmkd.families.Family.run_joint_parts`."""

    def __deepcopy__(self, memo: dict) -> Teacher:
        return self
