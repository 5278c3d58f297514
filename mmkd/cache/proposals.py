"""Store the outputs of a two-stage teacher's box heads for its own proposals."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.structures.bbox import get_box_tensor
from torch import Tensor

from ..families import Family
from ..families.two_stage import BOX_HEAD, TwoStage, box_head_path
from ..recorder import Source
from .contents import Batch, Content, ReadOutput, Restored, to_half
from .views import View, ViewTransform

# The smallest box that is encoded: a box may have no area left at the edge of the view.
_MIN_SIZE = 1.0  # px


class ProposalContent(Content):
    """The teacher's proposals, and the recorded outputs of its box heads for each of them.

    Proposals are transformed with the image, and dropped if they leave the view. Deltas (``fc_reg``) are
    decoded, transformed and encoded again, because a flip or crop changes them. Other outputs, such as
    class scores or embeddings, do not change.
    """

    kind = 'proposals'

    @classmethod
    def can_store(cls, source: Source, family: Family) -> bool:
        """Return whether the source is an output in a box head of a two-stage detector."""
        return (
            isinstance(family, TwoStage)
            and source.module.startswith(f'{BOX_HEAD}.')
            and source.capture == 'output'
            and source.method is None
        )

    @property
    def paths(self) -> list[str]:
        """The paths of the box heads that losses read."""
        return list(dict.fromkeys(box_head_path(self.detector, each) for each in self.sources))

    def extract(
        self, read: ReadOutput, shared: dict[str, Any], image: int, view: View
    ) -> dict[str, Tensor]:
        """Return the proposals of an image and their outputs; see :meth:`Content.extract`."""
        rois = shared['rois'][self.paths[0]]  # the same for all heads
        own = rois[:, 0] == image
        kept = {'proposals.boxes': rois[own, 1:].float()}
        for source in self.sources:
            kept[f'proposals.{source}'] = to_half(read(source)[own], source)
        return kept

    def restore(self, batch: Batch) -> Restored:
        """Transform proposals and deltas to the batch's views; see :meth:`Content.restore`."""
        counts = [len(fields['proposals.boxes']) for fields in batch.fields]
        image = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        boxes = torch.cat([fields['proposals.boxes'] for fields in batch.fields])
        values = {
            source: torch.cat([fields[f'proposals.{source}'] for fields in batch.fields]).float()
            for source in self.sources
        }
        if not batch.transform.is_identity:
            # On the host: the shapes depend on the number of visible proposals, so a GPU would have to wait.
            transform = batch.transform.rows(image)
            moved, visible = transform.boxes(boxes)
            stays = visible >= batch.min_visible
            if not stays.any() and len(stays):
                stays[visible.argmax()] = True  # an RoI head needs at least one proposal
            for source, value in values.items():
                if source.module.endswith('.fc_reg'):
                    value = self._deltas_in_new_view(source, value, boxes, moved, transform)
                values[source] = value[stays]
            boxes, image = moved[stays], image[stays]
        rois = torch.cat([image[:, None].to(boxes), boxes], -1).to(batch.device, non_blocking=True)
        values = {s: value.to(batch.device, non_blocking=True) for s, value in values.items()}
        return Restored(values, dict(rois={path: rois for path in self.paths}), {})

    def _deltas_in_new_view(
        self, source: Source, deltas: Tensor, old: Tensor, new: Tensor, transform: ViewTransform
    ) -> Tensor:
        coder = self.detector.get_submodule(box_head_path(self.detector, source)).bbox_coder
        width = coder.encode_size
        classes = deltas.shape[1] // width
        each = torch.arange(len(old)).repeat_interleave(classes)
        found = get_box_tensor(coder.decode(old[each], deltas.reshape(-1, width)))
        found = transform.rows(each).boxes(found)[0]
        center, size = (found[:, :2] + found[:, 2:]) / 2, found[:, 2:] - found[:, :2]
        size = size.clamp(min=_MIN_SIZE)
        found = torch.cat([center - size / 2, center + size / 2], -1)
        start = new[each]
        start = torch.cat([start[:, :2], torch.maximum(start[:, 2:], start[:, :2] + _MIN_SIZE)], -1)
        return coder.encode(start, found).reshape(deltas.shape)
