"""Two-stage detectors: Faster R-CNN, Cascade R-CNN and related detectors."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from mmdet.models.roi_heads import CascadeRoIHead
from mmdet.structures import SampleList
from mmdet.structures.bbox import bbox2roi
from torch import Tensor, nn

from ..errors import ConfigError
from ..recorder import Recorder, Source
from ..types import Detector
from .base import Family

BOX_HEAD = 'roi_head.bbox_head'
ROIS = Source('roi_head.bbox_roi_extractor', capture='input', index=1)
FEATURES = Source('', method='extract_feat')
# The modules of an RoI head that run for boxes; mask heads and others do not run.
BOX_BRANCH = ('bbox_head', 'bbox_roi_extractor', 'shared_head')
STAGE = re.compile(r'^(roi_head\.(?:bbox_head|bbox_roi_extractor))\.(\d+)(?=\.|$)')


class TwoStage(Family):
    """Runs backbone, neck, RPN head, and an RoI head with one box head or a cascade of box heads.

    Box heads can be compared only on the same proposals. By default the teacher evaluates the proposals
    that the student's sampler drew, which include ground-truth boxes as in training:

    - Cascade to cascade: stage i of the teacher evaluates the proposals of stage i of the student.
    - Cascade to a single box head: any stage of the teacher evaluates the student's proposals, without
      the refinement between stages. Later stages were trained on better boxes, so the first stage suits
      class scores best.
    - A single box head to a cascade: the teacher evaluates the proposals of the student's first stage.

    With ``proposals='teacher'`` both models evaluate the proposals of the teacher's RPN, in any stages
    that the config names. The student's RoI head runs on them after its own pass.

    Args:
        detector: A ``TwoStageDetector``.
        proposals: Which model's proposals both RoI heads evaluate: ``student`` or ``teacher``.
        num_proposals: Number of top-scoring proposals per image, with ``proposals='teacher'``.

    Examples:
        >>> from mmengine.hub import get_model
        >>> from mmkd.families import family_of
        >>> from mmkd.recorder import Source
        >>> detector = get_model('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')
        >>> family = family_of(detector, proposals='teacher')
        >>> type(family).__name__, family.part_of(Source('roi_head.bbox_head.fc_cls'))
        ('TwoStage', 'roi')
        >>> family.joint_parts({'features', 'roi'})  # both models evaluate the teacher's proposals
        {'roi'}
    """

    parts = dict(backbone='features', neck='features', rpn_head='rpn', roi_head='roi')

    def __init__(
        self,
        detector: Detector,
        proposals: str = 'student',
        num_proposals: int = 256,
        **options: Any,
    ) -> None:
        super().__init__(detector, **options)
        if proposals not in ('student', 'teacher'):
            raise ConfigError(
                f"teacher.proposals: must be 'student' or 'teacher', got {proposals!r}"
            )
        self.proposals = proposals
        self.num_proposals = num_proposals
        self.options = dict(proposals=proposals)

    @classmethod
    def covers(cls, detector: Detector) -> bool:
        """Return whether the detector has an RPN and an RoI head."""
        return bool(
            getattr(detector, 'with_rpn', False) and getattr(detector, 'with_roi_head', False)
        )

    def part_of(self, source: Source) -> str:
        """Return the part that computes a source; the stages of a cascade are ``roi.0``, ``roi.1`` …"""
        part = super().part_of(source)
        if part != 'roi':
            return part
        head = self.detector.roi_head
        if not has_box_head(self.detector):
            raise ConfigError(
                f"'{source}' cannot be recorded: {type(head).__name__} has no box head"
            )
        branch = source.module.split('.')[1:2]
        if branch and branch[0] not in BOX_BRANCH and hasattr(head, branch[0]):
            raise ConfigError(
                f"'{source}' cannot be recorded: mmkd runs only the box branch of a {type(head).__name__}; "
                f'record a module of {", ".join(BOX_BRANCH)}'
            )
        if not _needs_boxes_only(head):
            raise ConfigError(
                f"'{source}' cannot be recorded: the box heads of a {type(head).__name__} need more inputs "
                f'than proposals (a semantic branch, object queries), which mmkd does not compute; distil '
                f'the features or the RPN'
            )
        stage = stage_of(self.detector, source)
        return 'roi' if stage is None else f'roi.{stage}'

    def require_same_inputs(self, student: Detector, ours: Source, theirs: Source) -> None:
        """Check that both box heads evaluate the same proposals; see :meth:`Family.require_same_inputs`."""
        if self.proposals == 'teacher' or not _stages([self.part_of(theirs)]):
            return
        if not (self.covers(student) and has_box_head(student)):
            raise ConfigError(
                f"teacher: the teacher's RoI head evaluates the student's proposals, but a "
                f'{type(student).__name__} has none; record another module of the teacher'
            )
        if not is_cascade(student) or ours.module.split('.')[0] != 'roi_head':
            return
        stage, other = stage_of(student, ours), stage_of(self.detector, theirs)
        if other is None and stage:
            raise ConfigError(
                f"student: '{ours}' is computed on the refined proposals of stage {stage}, but the teacher's "
                f"only box head evaluates those of the student's stage 0; name stage 0 of the student, or "
                f"set teacher.proposals='teacher'"
            )
        if other not in (None, stage):
            raise ConfigError(
                f'teacher: stage {stage} of the student and stage {other} of the teacher evaluate different '
                f'proposals; name the same stage on both sides ({BOX_HEAD}.{stage} for the teacher), or set '
                f"teacher.proposals='teacher'"
            )

    def num_classes(self) -> int | None:
        """Return the number of classes of the box head; of a cascade, of its last stage."""
        head = getattr(self.detector.roi_head, 'bbox_head', None)
        head = head[-1] if isinstance(head, nn.ModuleList) else head
        return getattr(head, 'num_classes', None)

    def student_sources(self, parts: set[str], student: Detector) -> list[Source]:
        """Return the sources of the student's proposals, one per stage among ``parts``."""
        if self.proposals == 'teacher':
            return []
        return [
            _rois_source((stage or 0) if is_cascade(student) else None) for stage in _stages(parts)
        ]

    def joint_sources(self, parts: set[str]) -> list[Source]:
        """Return the source of the neck's output, on which the joint pass runs the box heads."""
        return [FEATURES] if self.joint_parts(parts) else []

    def joint_parts(self, parts: set[str]) -> set[str]:
        """Return the stages among ``parts`` if both models evaluate the teacher's proposals."""
        return (
            {part for part in parts if part.startswith('roi')}
            if self.proposals == 'teacher'
            else set()
        )

    def run(
        self,
        inputs: Tensor,
        data_samples: SampleList,
        parts: set[str],
        student: Recorder,
        scale: tuple[float, float] = (1.0, 1.0),
    ) -> dict[str, Any]:
        """Run ``parts``; see :meth:`Family.run`.

        Returns:
            ``rois``: the proposals of each box head of the teacher that runs, by its path. Shape (n, 5):
            image index, x1, y1, x2, y2 in the student's pixels.
        """
        if not parts:
            return {}
        features = self.detector.extract_feat(inputs)
        stages = _stages(parts)
        if stages and self.proposals == 'teacher':
            found = self.detector.rpn_head.predict(features, data_samples, rescale=False)
            rois = bbox2roi([instances.bboxes[: self.num_proposals] for instances in found])
            rois = _scaled(rois, (1 / scale[0], 1 / scale[1]))
            return dict(rois={_stage_path(stage): rois for stage in stages})
        if 'rpn' in parts:
            self.detector.rpn_head(features)
        shared = {}
        for stage in stages:
            source = ROIS if ROIS in student else _rois_source(stage or 0)
            if stage and source not in student:  # a cascade stops at a stage without proposals
                rois = features[0].new_zeros(0, 5, dtype=torch.float)
            else:
                rois = student[source]
            # Double heads, and mask branches without their own extractor, call the extractor again.
            rois = rois[0] if isinstance(rois, list) else rois
            _run_box_head(self.detector, features, _scaled(rois, scale), stage)
            shared[_stage_path(stage)] = rois
        return dict(rois=shared) if shared else {}

    def run_joint_parts(
        self, model: Detector, recorded: Recorder, shared: dict[str, Any], parts: set[str]
    ) -> None:
        """Run the box heads of one model on the teacher's proposals; see :meth:`Family.run_joint_parts`."""
        rois = _shared_rois(shared)
        if model is self.detector:
            rois = _scaled(rois, shared['scale'])
        for stage in _stages(parts):
            _run_box_head(model, recorded[FEATURES], rois, stage)


def has_box_head(model: Detector) -> bool:
    """Return whether a detector has an RoI head with a box head."""
    return getattr(getattr(model, 'roi_head', None), 'bbox_head', None) is not None


def is_cascade(model: Detector) -> bool:
    """Return whether a detector's RoI head has several stages, each with its own box head."""
    return isinstance(model.roi_head.bbox_head, nn.ModuleList)


def stage_of(model: Detector, source: Source) -> int | None:
    """Return the stage of the box head that computes a source; None if the RoI head has one box head.

    Raises:
        ConfigError: The model is a cascade, and the source names no stage or one that does not exist. Or
            the model is not a cascade, and the source names a stage.
    """
    found, kind = STAGE.match(source.module), type(model.roi_head).__name__
    if not is_cascade(model):
        if found:
            right = STAGE.sub(r'\1', source.module)
            raise ConfigError(
                f"'{source}': a {kind} has one box head and no stages; write '{right}'"
            )
        return None
    stages = len(model.roi_head.bbox_head)
    if not found or int(found[2]) >= stages:
        raise ConfigError(
            f"'{source}': must name one of the stages 0 to {stages - 1} of the {kind}, as in "
            f"'{BOX_HEAD}.0.fc_cls'"
        )
    return int(found[2])


def box_head_path(model: Detector, source: Source) -> str:
    """Return the path of the box head that computes a source: ``roi_head.bbox_head`` or one of its stages.

    Raises:
        ConfigError: See :func:`stage_of`.
    """
    return _stage_path(stage_of(model, source))


def _stage_path(stage: int | None) -> str:
    return BOX_HEAD if stage is None else f'{BOX_HEAD}.{stage}'


def _rois_source(stage: int | None) -> Source:
    """The source of the proposals of a stage, or of a single box head (None)."""
    return ROIS if stage is None else replace(ROIS, module=f'{ROIS.module}.{stage}')


def _stages(parts: Iterable[str]) -> list[int | None]:
    """The stages among the parts, in order; ``[None]`` for a single box head."""
    if 'roi' in parts:
        return [None]
    named = sorted(int(part[len('roi.') :]) for part in parts if part.startswith('roi.'))
    return [*named]


def _scaled(rois: Tensor, scale: tuple[float, float]) -> Tensor:
    """Convert proposals to the pixels of an image ``scale`` times as wide and high."""
    return rois if scale == (1.0, 1.0) else rois * rois.new_tensor([1.0, *scale, *scale])


def _shared_rois(shared: dict[str, Any]) -> Tensor:
    return next(iter(shared['rois'].values()))  # the same for all heads, see run()


def _run_box_head(model: Detector, features: Any, rois: Tensor, stage: int | None) -> None:
    model.roi_head._bbox_forward(*(() if stage is None else (stage,)), features, rois)


def _needs_boxes_only(head: Detector) -> bool:
    """Whether the box heads of an RoI head can run on features and boxes alone."""
    if not isinstance(head, CascadeRoIHead):
        return True
    if type(head)._bbox_forward is CascadeRoIHead._bbox_forward:
        return True
    # Hybrid task cascades and related heads qualify if built without their other branches.
    return not (getattr(head, 'with_semantic', True) or getattr(head, 'with_glbctx', False))
