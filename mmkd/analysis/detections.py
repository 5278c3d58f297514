"""Accuracy of detections on a sample of a data set, and the classes of the objects that they cover."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any

import torch
from mmdet.evaluation import CocoMetric
from mmdet.structures.bbox import bbox_overlaps, get_box_tensor
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.structures import InstanceData
from torch import Tensor

# Minimum IoU of a detection with an object to count as a detection of that object.
OVERLAP = 0.5


@dataclass(frozen=True)
class Score:
    """COCO average precision on a sample, 0..1; 0 without objects."""

    map: float
    ap50: float


@dataclass
class Sample:
    """Images of a data set with their objects.

    Attributes:
        batches: Batches of one image, as from a data loader.
        instances: Objects per image, as in the data set: ``bbox`` in px of the original image,
            ``bbox_label``, ``ignore_flag``.
        classes: Class names.
    """

    batches: list[dict[str, Any]]
    instances: list[list[dict[str, Any]]]
    classes: Sequence[str]

    @classmethod
    def of(cls, dataset: BaseDataset, images: int) -> Sample:
        """At most ``images`` images, spread evenly over a data set."""
        count = min(images, len(dataset))
        chosen = [index * len(dataset) // count for index in range(count)]
        return cls(
            [pseudo_collate([dataset[index]]) for index in chosen],
            [dataset.get_data_info(index)['instances'] for index in chosen],
            dataset.metainfo['classes'],
        )

    def __len__(self) -> int:
        return len(self.batches)

    def run(
        self, predict: Callable[[dict[str, Any]], list[InstanceData]], swapped: bool = False
    ) -> list[InstanceData]:
        """The detections in each image.

        Args:
            predict: Returns the detections in a batch.
            swapped: Swap red and blue in the images.
        """
        return [each for batch in self._batches(swapped) for each in predict(batch)]

    def _batches(self, swapped: bool) -> Iterator[dict[str, Any]]:
        for batch in self.batches:
            if swapped:
                batch = dict(batch, inputs=[image.flip(0) for image in batch['inputs']])
            yield batch

    def without_classes(self) -> Sample:
        """The same images and objects, with a single class."""
        instances = [[dict(it, bbox_label=0) for it in each] for each in self.instances]
        return Sample(self.batches, instances, ('object',))

    def score(self, found: Sequence[InstanceData]) -> Score:
        """The average precision of detections.

        Args:
            found: Detections per image, with labels of this sample's classes.
        """
        if not any(self.instances) or not any(len(each) for each in found):
            return Score(0.0, 0.0)
        metric = CocoMetric(metric='bbox')
        metric.dataset_meta = dict(classes=self.classes)
        samples = [
            dict(
                img_id=index,
                ori_shape=batch['data_samples'][0].ori_shape,
                instances=instances,
                pred_instances=dict(
                    bboxes=get_box_tensor(each.bboxes).detach().cpu(),
                    scores=each.scores.detach().cpu(),
                    labels=each.labels.detach().cpu(),
                ),
            )
            for index, (batch, instances, each) in enumerate(
                zip(self.batches, self.instances, found, strict=True)
            )
        ]
        with redirect_stdout(StringIO()):  # pycocotools prints its progress
            metric.process({}, samples)
            result = metric.evaluate(len(samples))
        values = (result['coco/bbox_mAP'], result['coco/bbox_mAP_50'])
        return Score(*(max(0.0, float(value)) for value in values))

    def confidence(self, found: Sequence[InstanceData]) -> Tensor:
        """For each object, the highest score of the detections of its class on it, or 0 without any.

        Args:
            found: Detections per image, with labels of this sample's classes.

        Returns:
            Shape (number of objects,).
        """
        values = []
        for labels, detections, covers in self._overlaps(found):
            right = covers & (detections.labels[:, None] == labels)
            values.append(torch.where(right, detections.scores[:, None], 0.0).amax(0))
        return torch.cat(values) if values else torch.zeros(0)

    def label_scores(self, found: Sequence[InstanceData], classes: int) -> Tensor:
        """Sum the scores of detections by their label and by the class of the object under them.

        Args:
            found: Detections per image, with labels of ``classes`` classes.
            classes: Number of the detector's classes.

        Returns:
            Sums of scores, shape (``classes``, number of this sample's classes).
        """
        sums = torch.zeros(classes, len(self.classes))
        for labels, detections, covers in self._overlaps(found):
            which, on = covers.nonzero(as_tuple=True)
            cells = (detections.labels[which], labels[on])
            sums.index_put_(cells, detections.scores[which].float(), accumulate=True)
        return sums

    def _overlaps(
        self, found: Sequence[InstanceData]
    ) -> Iterator[tuple[Tensor, InstanceData, Tensor]]:
        """Per image with objects: their labels, the detections, and which detection covers which object."""
        for instances, each in zip(self.instances, found, strict=True):
            known = [it for it in instances if not it.get('ignore_flag')]
            if not known:
                continue
            labels = torch.tensor([it['bbox_label'] for it in known])
            objects = torch.tensor([it['bbox'] for it in known], dtype=torch.float)
            each = each.cpu()
            if len(each):
                overlap = bbox_overlaps(get_box_tensor(each.bboxes).float(), objects)
                yield labels, each, overlap >= OVERLAP
            else:
                nothing = InstanceData(
                    scores=torch.zeros(1), labels=torch.zeros(1, dtype=torch.long)
                )
                yield labels, nothing, torch.zeros(1, len(labels), dtype=torch.bool)


def relabelled(found: Sequence[InstanceData], labels: Sequence[int]) -> list[InstanceData]:
    """Detections with new labels; detections with a negative new label are dropped.

    Args:
        found: Detections per image.
        labels: New label of each old label.
    """
    table = torch.tensor(labels)
    changed = []
    for each in found:
        each = each.cpu()
        new = table[each.labels]
        kept = new >= 0
        changed.append(
            InstanceData(bboxes=each.bboxes[kept], scores=each.scores[kept], labels=new[kept])
        )
    return changed
