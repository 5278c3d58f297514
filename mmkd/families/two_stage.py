"""Faster R-CNN and its relatives."""

from __future__ import annotations

from typing import Any

from mmdet.structures import SampleList
from mmdet.structures.bbox import bbox2roi
from torch import Tensor, nn

from ..errors import ConfigError
from ..recorder import Recorder, Source
from .base import Family

ROIS = Source('roi_head.bbox_roi_extractor', capture='input', index=1)
FEATURES = Source('', method='extract_feat')


class TwoStage(Family):
    """Backbone and neck, RPN head, RoI head.

    The RoI heads can only be compared on the same proposals. By default the teacher evaluates the
    proposals that the student's sampler drew (ground-truth boxes among them, as in training). With
    ``proposals='teacher'`` both evaluate the proposals of the teacher's RPN, for which the student's
    RoI head runs once more.

    Args:
        detector: A ``TwoStageDetector``.
        proposals: Whose proposals both RoI heads evaluate: ``student`` or ``teacher``.
        num_proposals: The best-scored proposals kept of each image, with the teacher's proposals.
    """

    parts = dict(backbone='features', neck='features', rpn_head='rpn', roi_head='roi')

    def __init__(
        self,
        detector: nn.Module,
        proposals: str = 'student',
        num_proposals: int = 256,
        **options: Any,
    ) -> None:
        super().__init__(detector, **options)
        if proposals not in ('student', 'teacher'):
            raise ConfigError(f"teacher.proposals='{proposals}' is neither 'student' nor 'teacher'")
        self.proposals = proposals
        self.num_proposals = num_proposals
        self.options = dict(proposals=proposals)

    @classmethod
    def covers(cls, detector: nn.Module) -> bool:
        return bool(
            getattr(detector, 'with_rpn', False) and getattr(detector, 'with_roi_head', False)
        )

    def part_of(self, source: Source) -> str:
        part = super().part_of(source)
        head = getattr(self.detector.roi_head, 'bbox_head', None)
        if part == 'roi' and (head is None or isinstance(head, nn.ModuleList)):
            raise ConfigError(
                f"'{source.module}' cannot be recorded: {type(self.detector.roi_head).__name__} has "
                f'{"no box head" if head is None else "one box head a stage"}; RoI losses need '
                f'exactly one (StandardRoIHead)'
            )
        return part

    def num_classes(self) -> int | None:
        head = getattr(self.detector.roi_head, 'bbox_head', None)
        head = head[-1] if isinstance(head, nn.ModuleList) else head
        return getattr(head, 'num_classes', None)

    def student_sources(self, parts: set[str]) -> list[Source]:
        if 'roi' not in parts:
            return []
        return [ROIS] if self.proposals == 'student' else [FEATURES]

    def teacher_sources(self, parts: set[str]) -> list[Source]:
        return [FEATURES] if self.joint_parts(parts) else []

    def joint_parts(self, parts: set[str]) -> set[str]:
        return parts & {'roi'} if self.proposals == 'teacher' else set()

    def run(
        self, inputs: Tensor, data_samples: SampleList, parts: set[str], student: Recorder
    ) -> dict[str, Any]:
        """See :meth:`Family.run`; shares ``rois``, shape (n, 5): image index, x1, y1, x2, y2 in pixels."""
        if not parts:
            return {}
        features = self.detector.extract_feat(inputs)
        if 'roi' not in parts:
            if 'rpn' in parts:
                self.detector.rpn_head(features)
            return {}
        if self.proposals == 'teacher':
            found = self.detector.rpn_head.predict(features, data_samples, rescale=False)
            return dict(
                rois=bbox2roi([instances.bboxes[: self.num_proposals] for instances in found])
            )
        if 'rpn' in parts:
            self.detector.rpn_head(features)
        rois = student[ROIS]
        self.detector.roi_head._bbox_forward(features, rois)
        return dict(rois=rois)

    def follow(self, model: nn.Module, recorded: Recorder, shared: dict[str, Any]) -> None:
        model.roi_head._bbox_forward(recorded[FEATURES], shared['rois'])
