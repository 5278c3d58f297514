"""Single-stage detectors: RetinaNet, FCOS, GFL and related detectors."""

from __future__ import annotations

from typing import Any

from mmdet.models.detectors import SingleStageDetector
from mmdet.structures import SampleList
from torch import Tensor

from ..recorder import Recorder
from ..types import Detector
from .base import Family


class SingleStage(Family):
    """Runs backbone, neck and dense head.

    Both heads predict at the same positions of the same levels, so no inputs have to be shared. The table
    in :mod:`mmkd.families.dense_heads` lists the supported heads.

    Args:
        detector: A ``SingleStageDetector`` with a dense head that has priors (anchors or points).

    Examples:
        >>> from mmengine.hub import get_model
        >>> from mmkd.families import family_of
        >>> from mmkd.recorder import Source
        >>> family = family_of(get_model('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'))
        >>> type(family).__name__
        'SingleStage'
        >>> family.part_of(Source('bbox_head.retina_cls'))
        'head'
    """

    parts = dict(Family.parts, bbox_head='head')

    @classmethod
    def covers(cls, detector: Detector) -> bool:
        """Return whether the detector is a ``SingleStageDetector`` with a prior generator."""
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
        """Run backbone, neck and, if it is among ``parts``, the head; see :meth:`Family.run`."""
        if parts:
            features = self.detector.extract_feat(inputs)
            if 'head' in parts:
                self.detector.bbox_head(features)
        return {}
