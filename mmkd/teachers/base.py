"""What the training step and the losses need of a teacher."""

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
    """The interface of all kinds of teachers.

    A teacher is deliberately no ``nn.Module``: nothing that walks a model's modules (optimizer,
    ``state_dict``, ``train()``, EMA, DDP) can reach it, and a deep copy of its owner shares it.

    A subclass sets the attributes below and defines :meth:`recorder` and :meth:`run`.
    """

    #: The frozen detector; alignments read the settings of its heads.
    detector: Detector
    #: How this kind of detector runs.
    family: Family
    #: Its class names in the order of its outputs, or None if unknown.
    classes: tuple[str, ...] | None
    #: Why they are unknown, if there is more to say.
    classes_error: str | None = None
    #: Width and height of its images over those of the student's.
    scale: float = 1.0

    @property
    def options(self) -> dict[str, Any]:
        """Settings that alignments may read, by name: those of the family, and ``scale``."""
        return dict(self.family.options, scale=self.scale)

    @property
    def origin(self) -> str:
        """Where its outputs come from, for the log."""
        raise NotImplementedError

    def num_parameters(self) -> int:
        """Number of parameters of the whole detector."""
        return sum(parameter.numel() for parameter in self.detector.parameters())

    def require(self, entries: Iterable[Any], name: str, class_map: ClassMap | None) -> None:
        """Check that it can provide what losses read; a detector always can.

        Args:
            entries: The loss entries that use this teacher.
            name: Its name.
            class_map: Its classes mapped to the student's, if a loss reads classes.
        """

    def prepare_data(self, dataset: Any, preprocessor: BaseDataPreprocessor | None = None) -> None:
        """Check that it can serve the images of a training run; a detector always can.

        Args:
            dataset: The training data set, as it is used.
            preprocessor: The student's.
        """

    def recorder(self, sources: Sequence[Source]) -> Recorder:
        """A recorder of its modules.

        It returns float32 whatever the pass runs in, and maps without what only the teacher's own padding
        (``pad_size_divisor``) adds.
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
        """Compute the parts that losses read; see :meth:`mmkd.families.Family.run`.

        Args:
            inputs: Images as the student sees them, shape (N, 3, H, W).
            data_samples: Their meta information.
            preprocessor: The student's, which normalised ``inputs``.
            parts: Names of parts to run.
            student: What the student recorded.

        Returns:
            What the family shares, and ``scale``: width and height of its images over the student's.
        """
        raise NotImplementedError

    def run_joint_parts(self, recorded: Recorder, shared: dict[str, Any], parts: set[str]) -> None:
        """Compute the joint parts; see :meth:`mmkd.families.Family.run_joint_parts`."""

    def __deepcopy__(self, memo: dict) -> Teacher:
        return self
