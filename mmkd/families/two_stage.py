"""Faster R-CNN and its relatives."""

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
# What runs when an RoI head looks at boxes; mask heads and the like rest.
BOX_BRANCH = ('bbox_head', 'bbox_roi_extractor', 'shared_head')
STAGE = re.compile(r'^(roi_head\.(?:bbox_head|bbox_roi_extractor))\.(\d+)(?=\.|$)')


class TwoStage(Family):
    """Backbone and neck, RPN head, RoI head with one box head or a cascade of them.

    Box heads can only be compared on the same proposals. By default the teacher evaluates the
    proposals that the student's sampler drew (ground-truth boxes among them, as in training):

    - a cascade teaches a cascade stage by stage: each stage on what the student's stage of the same
      number drew;
    - a cascade teaches a single box head with any of its stages, each on the student's one set of
      proposals, without the refinement between stages. Later stages were trained on better boxes than
      these, so the first suits best for class scores;
    - a single box head teaches the first stage of a cascade.

    With ``proposals='teacher'`` both evaluate the proposals of the teacher's RPN, in whatever stages are
    named; the student's RoI head runs on them after its own pass.

    Args:
        detector: A ``TwoStageDetector``.
        proposals: Whose proposals both RoI heads evaluate: ``student`` or ``teacher``.
        num_proposals: The best-scored proposals kept of each image, with the teacher's proposals.
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
            raise ConfigError(f"teacher.proposals='{proposals}' is neither 'student' nor 'teacher'")
        self.proposals = proposals
        self.num_proposals = num_proposals
        self.options = dict(proposals=proposals)

    @classmethod
    def covers(cls, detector: Detector) -> bool:
        return bool(
            getattr(detector, 'with_rpn', False) and getattr(detector, 'with_roi_head', False)
        )

    def part_of(self, source: Source) -> str:
        """See :meth:`Family.part_of`; the stages of a cascade are ``roi.0``, ``roi.1`` …"""
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
                f"'{source}' cannot be recorded: of a {type(head).__name__} mmkd runs only the branch of "
                f'the boxes, {", ".join(BOX_BRANCH)}'
            )
        if not _needs_boxes_only(head):
            raise ConfigError(
                f"'{source}' cannot be recorded: the box heads of a {type(head).__name__} read more than "
                f'proposals (a semantic branch, object queries), which mmkd does not run; distil the '
                f'features or the RPN instead'
            )
        stage = stage_of(self.detector, source)
        return 'roi' if stage is None else f'roi.{stage}'

    def require_same_inputs(self, student: Detector, ours: Source, theirs: Source) -> None:
        if self.proposals == 'teacher' or not _stages([self.part_of(theirs)]):
            return
        if not (self.covers(student) and has_box_head(student)):
            raise ConfigError(
                f"the teacher's RoI head evaluates the student's proposals, but a "
                f"{type(student).__name__} makes none; record another module of the teacher's"
            )
        if not is_cascade(student) or ours.module.split('.')[0] != 'roi_head':
            return
        stage, other = stage_of(student, ours), stage_of(self.detector, theirs)
        if other is None and stage:
            raise ConfigError(
                f"'{ours}' is computed on the refined proposals of stage {stage}, but the teacher's only "
                f"box head evaluates those of the student's stage 0; name stage 0 of the student, or set "
                f"teacher.proposals='teacher'"
            )
        if other not in (None, stage):
            raise ConfigError(
                f'stage {stage} of the student and stage {other} of the teacher evaluate different '
                f'proposals; name the same stage on both sides ({BOX_HEAD}.{stage} for the teacher), or set '
                f"teacher.proposals='teacher'"
            )

    def num_classes(self) -> int | None:
        head = getattr(self.detector.roi_head, 'bbox_head', None)
        head = head[-1] if isinstance(head, nn.ModuleList) else head
        return getattr(head, 'num_classes', None)

    def student_sources(self, parts: set[str], student: Detector) -> list[Source]:
        if self.proposals == 'teacher':
            return []
        return [
            _rois_source((stage or 0) if is_cascade(student) else None) for stage in _stages(parts)
        ]

    def joint_sources(self, parts: set[str]) -> list[Source]:
        return [FEATURES] if self.joint_parts(parts) else []

    def joint_parts(self, parts: set[str]) -> set[str]:
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
        """See :meth:`Family.run`.

        Shares ``rois``: by the path of each of the teacher's box heads that is read, what it
        evaluates, shape (n, 5): image index, x1, y1, x2, y2 in the student's pixels.
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
            if stage and source not in student:  # a cascade ends at a stage without proposals
                rois = features[0].new_zeros(0, 5, dtype=torch.float)
            else:
                rois = student[source]
            # Double heads, and mask branches without an extractor of their own, call it once more.
            rois = rois[0] if isinstance(rois, list) else rois
            _run_box_head(self.detector, features, _scaled(rois, scale), stage)
            shared[_stage_path(stage)] = rois
        return dict(rois=shared) if shared else {}

    def run_joint_parts(
        self, model: Detector, recorded: Recorder, shared: dict[str, Any], parts: set[str]
    ) -> None:
        rois = _shared_rois(shared)
        if model is self.detector:
            rois = _scaled(rois, shared['scale'])
        for stage in _stages(parts):
            _run_box_head(model, recorded[FEATURES], rois, stage)


def has_box_head(model: Detector) -> bool:
    """Whether a detector has an RoI head with boxes."""
    return getattr(getattr(model, 'roi_head', None), 'bbox_head', None) is not None


def is_cascade(model: Detector) -> bool:
    """Whether a detector's RoI head has a box head a stage."""
    return isinstance(model.roi_head.bbox_head, nn.ModuleList)


def stage_of(model: Detector, source: Source) -> int | None:
    """The stage whose box head computes a source; None where the RoI head has but one box head.

    Raises:
        ConfigError: The source names no stage of a cascade, or one that is not there.
    """
    found, kind = STAGE.match(source.module), type(model.roi_head).__name__
    if not is_cascade(model):
        if found:
            right = STAGE.sub(r'\1', source.module)
            raise ConfigError(f"'{source}': a {kind} has one box head, no stages; write '{right}'")
        return None
    stages = len(model.roi_head.bbox_head)
    if not found or int(found[2]) >= stages:
        raise ConfigError(
            f"'{source}' names none of the stages 0 to {stages - 1} of a {kind}; write one into the path, "
            f"as in '{BOX_HEAD}.0.fc_cls'"
        )
    return int(found[2])


def box_head_path(model: Detector, source: Source) -> str:
    """Path of the box head that computes a source, ``roi_head.bbox_head`` or a stage of it.

    Raises:
        ConfigError: As :func:`stage_of`.
    """
    return _stage_path(stage_of(model, source))


def _stage_path(stage: int | None) -> str:
    return BOX_HEAD if stage is None else f'{BOX_HEAD}.{stage}'


def _rois_source(stage: int | None) -> Source:
    """Where the proposals of a stage, or of a single box head, are recorded."""
    return ROIS if stage is None else replace(ROIS, module=f'{ROIS.module}.{stage}')


def _stages(parts: Iterable[str]) -> list[int | None]:
    """The stages among parts, in order; ``[None]`` for a single box head."""
    if 'roi' in parts:
        return [None]
    named = sorted(int(part[len('roi.') :]) for part in parts if part.startswith('roi.'))
    return [*named]


def _scaled(rois: Tensor, scale: tuple[float, float]) -> Tensor:
    """Proposals in the pixels of an image ``scale`` times as wide and as high."""
    return rois if scale == (1.0, 1.0) else rois * rois.new_tensor([1.0, *scale, *scale])


def _shared_rois(shared: dict[str, Any]) -> Tensor:
    return next(iter(shared['rois'].values()))  # the same for every head, see run()


def _run_box_head(model: Detector, features: Any, rois: Tensor, stage: int | None) -> None:
    model.roi_head._bbox_forward(*(() if stage is None else (stage,)), features, rois)


def _needs_boxes_only(head: Detector) -> bool:
    """Whether the box heads of an RoI head can run on features and boxes alone."""
    if not isinstance(head, CascadeRoIHead):
        return True
    if type(head)._bbox_forward is CascadeRoIHead._bbox_forward:
        return True
    # Hybrid task cascades and their kin, where built without their further branches.
    return not (getattr(head, 'with_semantic', True) or getattr(head, 'with_glbctx', False))
