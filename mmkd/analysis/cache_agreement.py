"""Compare a cache with its teacher on augmented images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.ops import batched_nms
from mmdet.structures import SampleList
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps, get_box_tensor
from mmengine.dataset import pseudo_collate
from torch import Tensor

from ..alignments.dense_output import HEAD as DENSE
from ..alignments.dense_output import DenseOutput
from ..alignments.features import levels_of
from ..alignments.queries import HEAD
from ..cache.contents import Content, ReadOutput
from ..cache.maps import MapContent
from ..cache.priors import RPN, DenseContent, RPNContent
from ..cache.proposals import ProposalContent
from ..cache.queries import QueryContent
from ..distillers.teacher_outputs import TeacherOutputs
from ..families.class_scores import class_probabilities, uses_softmax
from ..families.dense_heads import dense_head, prediction_scores
from ..recorder import Recorder, Source
from ..teachers import CachedTeacher, LiveTeacher

# Minimum scores of detections of the teacher and of the cache, and minimum IoU of a matching pair.
DETECTION_SCORE, CANDIDATE_SCORE, MATCH_IOU = 0.3, 0.05, 0.5


@dataclass(frozen=True)
class Agreement:
    """Agreement of a cache with its live teacher over several images.

    Attributes:
        kind: Kind of the compared content.
        detections: Number of detections of the live teacher: raw outputs with a probability of at least 0.3,
            after non-maximum suppression.
        found: Fraction of them that the cache has too, with the same class and an IoU of at least 0.5.
        iou: Mean IoU of these pairs.
        difference: Mean difference of their probabilities.
        cosine: For feature maps, instead of all others: mean cosine similarity over the stored positions.
    """

    kind: str
    detections: int = 0
    found: float = float('nan')
    iou: float = float('nan')
    difference: float = float('nan')
    cosine: float = float('nan')


class Comparison:
    """Accumulates the agreement over batches.

    Args:
        content: The content to compare.
        live: The teacher.
    """

    def __init__(self, content: Content, live: LiveTeacher) -> None:
        self.content, self.live = content, live
        self._rows: list[tuple[float, float]] = []  # overlap and difference of each detection
        self._cosines: list[Tensor] = []

    def add(
        self,
        live: ReadOutput,
        cached: ReadOutput,
        masks: dict[Source, Any],
        shared: Sequence[dict],
        samples: SampleList,
    ) -> None:
        """Add the comparison of one batch.

        Args:
            live, cached: Return a recorded output of the teacher and of the cache by its source.
            masks: Stored positions of the cached maps, by source.
            shared: Shared values of the teacher and of the cache, such as proposals.
            samples: Metadata of the batch.
        """
        if isinstance(self.content, MapContent):
            self._add_maps(live, cached, masks)
            return
        ours, theirs = (
            detections(self.content, self.live, read, each, samples)
            for read, each in zip((live, cached), shared, strict=True)
        )
        for found, others in zip(ours, theirs, strict=True):
            boxes, probability, label = _detections_above(*found, DETECTION_SCORE)
            other_boxes, other_probability, other_label = _detections_above(
                *others, CANDIDATE_SCORE
            )
            if not len(boxes):
                continue
            if not len(other_boxes):
                self._rows += [(0.0, 0.0)] * len(boxes)
                continue
            overlap = bbox_overlaps(boxes, other_boxes) * (label[:, None] == other_label)
            overlap, best = overlap.max(-1)
            apart = (other_probability[best] - probability).abs()
            self._rows += zip(overlap.tolist(), apart.tolist(), strict=True)

    def _add_maps(self, live: ReadOutput, cached: ReadOutput, masks: dict[Source, Any]) -> None:
        for source in self.content.sources:
            stored = masks.get(source)
            pairs = zip(
                levels_of(live(source), 'teacher'),
                levels_of(cached(source), 'teacher'),
                strict=True,
            )
            for index, (level, other) in enumerate(pairs):
                cosine = F.cosine_similarity(level, other, dim=1)
                self._cosines.append(
                    cosine.flatten() if stored is None else cosine[stored[index][:, 0]]
                )

    def result(self) -> Agreement:
        """The agreement over all batches."""
        if isinstance(self.content, MapContent):
            return Agreement(self.content.kind, cosine=float(torch.cat(self._cosines).mean()))
        if not self._rows:
            return Agreement(self.content.kind)
        overlap, apart = torch.tensor(self._rows).unbind(-1)
        same = overlap >= MATCH_IOU
        means = (float(each[same].mean()) for each in (overlap, apart))
        return Agreement(self.content.kind, len(overlap), float(same.float().mean()), *means)


def detections(
    content: Content, teacher: LiveTeacher, read: ReadOutput, shared: dict, samples: SampleList
) -> Iterable[tuple[Tensor, Tensor]]:
    """Decode the raw outputs of a teacher to boxes and probabilities.

    Returns:
        Per image, boxes in px of the teacher's images, shape (n, 4), and probabilities, shape
        (n, classes). Empty if the losses read no scores or no boxes.
    """
    detector = teacher.detector
    if isinstance(content, QueryContent):
        scores, boxes = (value[content.layers[-1]] for value in read(HEAD))
        scores = class_probabilities(scores, uses_softmax(detector.bbox_head))
        sizes = boxes.new_tensor([sample.img_shape[1::-1] for sample in samples]).repeat(1, 2)
        return list(zip(bbox_cxcywh_to_xyxy(boxes) * sizes[:, None], scores, strict=True))
    if isinstance(content, ProposalContent):
        return _of_proposals(content, detector, read, shared, len(samples))
    if isinstance(content, DenseContent):
        parts, head = read(DENSE), detector.bbox_head
    else:
        assert isinstance(content, RPNContent)
        if RPN[1] not in content.sources:
            return []
        head = detector.rpn_head
        parts = [_levels(read(source)) for source in RPN if source in content.sources]
    found = []
    for image in range(len(samples)):
        value = tuple([level[image : image + 1] for level in part] for part in parts)
        output = DenseOutput(value, 'teacher', head, range(len(parts[0])))
        quality = output.quality() if dense_head(head).quality else None
        scores = prediction_scores(head, output.class_logits(), quality)
        found.append((torch.cat(output.boxes(), 1)[0], scores))
    return found


def _detections_above(boxes: Tensor, scores: Tensor, least: float) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, probabilities and labels with a probability of at least ``least``, after NMS."""
    probability, label = scores.max(-1)
    likely = probability >= least
    boxes, probability, label = boxes[likely], probability[likely], label[likely]
    if not len(boxes):
        return boxes, probability, label
    _, keep = batched_nms(boxes, probability, label, dict(type='nms', iou_threshold=MATCH_IOU))
    return boxes[keep], probability[keep], label[keep]


def _of_proposals(
    content: ProposalContent, detector: Any, read: ReadOutput, shared: dict, images: int
) -> Iterable[tuple[Tensor, Tensor]]:
    path = content.paths[-1]
    if Source(f'{path}.fc_cls') not in content.sources:
        return []
    head, rois = detector.get_submodule(path), shared['rois'][path]
    scores = class_probabilities(read(Source(f'{path}.fc_cls')), uses_softmax(head))
    boxes, deltas = rois[:, 1:], Source(f'{path}.fc_reg')
    if deltas in content.sources:
        values = read(deltas)
        values = values.reshape(len(values), -1, head.bbox_coder.encode_size)
        index = scores.argmax(-1).clamp(max=values.shape[1] - 1)
        values = values[torch.arange(len(values)), index]
        boxes = get_box_tensor(head.bbox_coder.decode(boxes, values))
    return [(boxes[rois[:, 0] == i], scores[rois[:, 0] == i]) for i in range(images)]


def _levels(value: Any) -> list[Tensor]:
    return value if isinstance(value, list) else [value]


def compare(live: TeacherOutputs, cached: CachedTeacher, dataset: Any) -> list[Agreement]:
    """Compare the teacher and its cache on all images of a data set.

    Args:
        live: The teacher that wrote the cache.
        cached: The teacher that reads the cache.
        dataset: Augmented images that record their augmentation.

    Returns:
        The agreement for each kind of content.

    Raises:
        ConfigError: The cache lacks content that the losses read.
    """
    cached.require(live.entries, live.name, live.class_map)
    assert isinstance(live.teacher, LiveTeacher)
    comparisons = [Comparison(content, live.teacher) for content in live.contents]
    own = live.teacher.detector.data_preprocessor
    for index in range(len(dataset)):
        data = own(pseudo_collate([dataset[index]]), False)
        with live.run(data) as (read, shared):
            inputs, samples = data['inputs'], data['data_samples']
            nothing = Recorder(live.teacher.detector, ())
            shared_of_cache = cached.run(inputs, samples, own, set(), nothing)
            for each in comparisons:
                each.add(
                    read,
                    cached.outputs.__getitem__,
                    shared_of_cache['stored_masks'],
                    (shared, shared_of_cache),
                    samples,
                )
            cached.outputs = {}
    return [each.result() for each in comparisons]
