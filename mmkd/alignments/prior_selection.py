"""Select and weight the priors of dense heads, and compute the divisor of their sum."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.utils import reduce_mean
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor

from ..errors import ConfigError
from ..families.class_scores import uses_softmax
from ..families.dense_heads import dense_head, label_sources, prediction_scores
from ..recorder import Source
from ..types import Detector
from .base import Step, require_choice
from .dense_output import CLASSES, DenseOutput
from .features import labelled_boxes
from .padding import valid_positions
from .valuable_region import valuable_region

SELECTIONS = ('all', 'labels', 'valuable')
CONFIDENCE = 'confidence'


class PriorSelection:
    """Selects and weights the priors that two heads have in common.

    Args:
        select, confidence, num_priors, normalizer, count_padding: See
            :class:`mmkd.alignments.dense.DenseAlignment`.

    Raises:
        ConfigError: A value is invalid.
    """

    def __init__(
        self,
        select: str,
        confidence: bool,
        num_priors: int | None,
        normalizer: Any,
        count_padding: bool,
    ) -> None:
        require_choice('select', select, SELECTIONS)
        if num_priors is not None and num_priors < 1:
            raise ConfigError(f'align.num_priors: must be at least 1, got {num_priors}')
        if isinstance(normalizer, (int, float)) and normalizer <= 0:
            raise ConfigError(f'align.normalizer: must be above 0, got {normalizer}')
        if isinstance(normalizer, (dict, str)) and normalizer != CONFIDENCE:
            normalizer = Source.parse(normalizer)
        self.select, self.confidence, self.num_priors = select, confidence, num_priors
        #: A number, ``confidence``, a recorded output of the student, or None.
        self.normalizer: Any = normalizer
        self.count_padding = count_padding
        self._labels: tuple[Source, ...] = ()

    @property
    def sources(self) -> list[Source]:
        """The outputs of the student to record: the normalizer and the labels."""
        return [self.normalizer] * isinstance(self.normalizer, Source) + [*self._labels]

    def check(self, student: Detector, teacher: Detector) -> None:
        """Check that ``select`` supports these heads.

        Raises:
            ConfigError: It does not; the message names the reason.
        """
        if self.select == 'valuable' and not hasattr(
            teacher.bbox_head.prior_generator, 'base_anchors'
        ):
            raise ConfigError(
                f"align.select: 'valuable' needs anchors, but a {type(teacher).__name__} has points; use "
                f"'labels' or 'all'"
            )
        if self.select == 'labels':
            head = student.bbox_head
            # A head has only one of these losses at a time.
            self._labels = tuple(
                each
                for each in label_sources(head)
                if hasattr(head, each.method or each.module.rpartition('.')[2])
            )
            if not self._labels:
                raise ConfigError(
                    f"align.select: 'labels' is not supported for a {type(head).__name__}, because its "
                    f"labels cannot be recorded; use 'all'"
                )

    def weights_and_indices(
        self, ours: DenseOutput, theirs: DenseOutput, step: Step
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the weight of each prior, and the indices of the priors to compare.

        Args:
            ours: The student's own output, for its levels.
            theirs: The teacher's output.
            step: The data of the step.

        Returns:
            Weights, shape (priors,), or None: equal weights. Indices, shape (num_priors,), or None: all.
        """
        weight, chosen, confidence = self._valid(theirs, step), None, None
        if self.confidence or self.num_priors is not None:
            confidence = self.confidences(theirs, step)
        factors = [confidence] if confidence is not None and self.confidence else []
        if self.select != 'all':
            valuable = self.select == 'valuable'
            factors.append(self._valuable(theirs, step) if valuable else self._labelled(ours, step))
        for factor in factors:
            weight = factor if weight is None else weight * factor
        if confidence is not None and self.num_priors is not None:
            if self.num_priors < len(confidence):
                chosen = confidence.topk(self.num_priors).indices
        return weight, chosen

    def _valid(self, theirs: DenseOutput, step: Step) -> Tensor | None:
        """1 for priors on the images, 0 for priors on padding, shape (priors,); None: no padding."""
        if self.count_padding:
            return None
        key = ('valid priors', tuple(theirs.levels))
        if key not in step.memo:
            step.memo[key] = None
            maps = theirs.maps(CLASSES)
            masks = [
                valid_positions(step.data_samples, level.shape[2:], level.device) for level in maps
            ]
            if any(mask is not None for mask in masks):
                kinds = theirs.head.prior_generator.num_base_priors
                counts = [level.new_ones(len(level), *level.shape[2:]) for level in maps]
                step.memo[key] = torch.cat(
                    [
                        (count if mask is None else count * mask)
                        .flatten()
                        .repeat_interleave(kinds[i])
                        for i, count, mask in zip(theirs.levels, counts, masks, strict=True)
                    ]
                ).float()
        return step.memo[key]

    def confidences(self, theirs: DenseOutput, step: Step) -> Tensor:
        """Return the teacher's score of the top-scoring shared class, 0 on padding, shape (priors,)."""
        key = ('dense confidence', tuple(theirs.levels), self.count_padding)
        if key not in step.memo:
            logits = step.class_map.teacher_logits(theirs.class_logits(), uses_softmax(theirs.head))
            quality = theirs.quality() if dense_head(theirs.head).quality else None
            scores = prediction_scores(theirs.head, logits, quality).amax(-1)
            valid = self._valid(theirs, step)
            step.memo[key] = scores if valid is None else scores * valid
        return step.memo[key]

    def _labelled(self, ours: DenseOutput, step: Step) -> Tensor:
        """1 for priors to which the student's own losses assign an object, else 0, shape (priors,)."""
        entry, head = dense_head(ours.head), ours.head
        called = [source for source in self._labels if source in step.student_record]
        every = DenseOutput(ours.value, ours.owner, head, range(len(head.prior_generator.strides)))
        maps, kinds = every.maps(CLASSES), head.prior_generator.num_base_priors
        counts = [
            level.shape[2] * level.shape[3] * number
            for level, number in zip(maps, kinds, strict=True)
        ]
        images = len(maps[0])
        if not called:
            raise ConfigError(
                f"align.select: 'labels' found no labels in this step: {type(head).__name__} did not call "
                f"{' or '.join(map(str, self._labels))}; use 'all'"
            )
        calls = step.student_record[called[0]]
        calls = calls if isinstance(calls, list) else [calls]
        labels = [call[0] if isinstance(call, (tuple, list)) else call for call in calls]
        objects = torch.cat([_has_object(each, head.num_classes) for each in labels])
        if len(objects) != images * sum(counts):
            raise ConfigError(
                f"align.select: 'labels' found labels of {len(objects)} priors, but the "
                f"{type(head).__name__} has {images * sum(counts)} priors; use 'all'"
            )
        if entry.labels_by_image:
            levels = objects.reshape(images, -1).split(counts, 1)
        else:
            levels = objects.split([images * count for count in counts])
        return torch.cat([levels[index].flatten() for index in ours.levels]).float()

    def _valuable(self, theirs: DenseOutput, step: Step) -> Tensor:
        key = ('valuable region', tuple(theirs.levels))
        if key not in step.memo:
            generator, maps = theirs.head.prior_generator, theirs.box_maps()
            device = maps[0].device
            anchors = [
                generator.single_level_grid_priors(level.shape[2:], index, device=device)
                / level.new_tensor(step.scale).repeat(2)
                for index, level in zip(theirs.levels, maps, strict=True)
            ]
            boxes, image = labelled_boxes(step, device)
            values = valuable_region(anchors, boxes, image, len(step.data_samples))
            step.memo[key] = torch.cat([value.flatten() for value in values])
        return step.memo[key]

    def divisor(self, theirs: DenseOutput, step: Step) -> Tensor | float | None:
        """Return the divisor of the sum over priors, the same on all ranks; None: the sum of the weights."""
        if self.normalizer == CONFIDENCE:
            return reduce_mean(self.confidences(theirs, step).sum()).clamp(min=1.0)
        if not isinstance(self.normalizer, Source):
            return self.normalizer
        found: Any = None
        if self.normalizer in step.student_record:
            found = step.student_record[self.normalizer]
            found = found[0] if isinstance(found, list) else found  # the same for each level
        if get_world_size() == 1:
            return 1.0 if found is None else found
        # FCOS does not call its box loss on a rank with no object in its images.
        every = torch.as_tensor(-1.0 if found is None else found, dtype=torch.float)
        every = every.to(theirs.maps(CLASSES)[0].device).clone()
        all_reduce(every, 'max')
        return torch.where(every < 0, 1.0, every)


def _has_object(labels: Tensor, classes: int) -> Tensor:
    """Whether each prior has an object, shape (priors,); see :attr:`DenseHead.labels`."""
    if labels.is_floating_point():  # targets per class
        return (labels.reshape(len(labels), -1) > 0).any(-1)
    return ((labels >= 0) & (labels < classes)).flatten()
