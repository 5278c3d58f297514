"""RetinaNet, FCOS, GFL and their relatives."""

from __future__ import annotations

from typing import Any

from mmdet.models.detectors import SingleStageDetector
from mmdet.structures import SampleList
from torch import Tensor, nn

from ..recorder import Recorder
from .base import Family


class SingleStage(Family):
    """Backbone and neck, dense head: RetinaNet, FCOS, ATSS, PAA, GFL, RTMDet, YOLOX.

    Both heads answer the same places of the same levels, so nothing has to be shared.

    Args:
        detector: A ``SingleStageDetector`` whose head lays priors (anchors or points) on its levels.
    """

    parts = dict(Family.parts, bbox_head='head')

    @classmethod
    def covers(cls, detector: nn.Module) -> bool:
        return isinstance(detector, SingleStageDetector) and hasattr(
            getattr(detector, 'bbox_head', None), 'prior_generator'
        )

    def run(
        self, inputs: Tensor, data_samples: SampleList, parts: set[str], student: Recorder
    ) -> dict[str, Any]:
        if parts:
            features = self.detector.extract_feat(inputs)
            if 'head' in parts:
                self.detector.bbox_head(features)
        return {}
