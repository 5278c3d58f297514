"""RetinaNet, FCOS, GFL and their relatives."""

from __future__ import annotations

from typing import Any

from mmdet.models.detectors import SingleStageDetector
from mmdet.structures import SampleList
from torch import Tensor

from ..recorder import Recorder
from ..types import Detector
from .base import Family


class SingleStage(Family):
    """Backbone, neck and dense head.

    Both heads predict at the same positions of the same levels, so nothing has to be shared. The table of
    :mod:`mmkd.families.dense_heads` has the heads whose outputs can be compared.

    Args:
        detector: A ``SingleStageDetector`` whose head lays priors (anchors or points) on its levels.
    """

    parts = dict(Family.parts, bbox_head='head')

    @classmethod
    def covers(cls, detector: Detector) -> bool:
        return isinstance(detector, SingleStageDetector) and hasattr(
            getattr(detector, 'bbox_head', None), 'prior_generator'
        )

    def run(
        self,
        inputs: Tensor,
        data_samples: SampleList,
        parts: set[str],
        student: Recorder,
        scale: tuple[float, float] = (1.0, 1.0),
    ) -> dict[str, Any]:
        if parts:
            features = self.detector.extract_feat(inputs)
            if 'head' in parts:
                self.detector.bbox_head(features)
        return {}
