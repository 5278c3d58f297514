"""Store the decoder outputs of a detection transformer."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh
from torch import Tensor

from ..alignments.queries import HEAD, QUERIES
from ..families import Family
from ..families.class_scores import uses_softmax
from ..families.transformer import Transformer, num_queries
from ..recorder import Source
from .contents import Batch, Content, ReadOutput, Restored, to_half
from .views import View

# A typical difference between the scores of no-object and of the classes in a trained decoder.
NO_OBJECT = 10.0


class QueryContent(Content):
    """Class scores and boxes of the recorded decoder layers, and query embeddings if losses read them.

    Boxes are transformed with the image. If a box leaves the view, its query gets the scores of no-object,
    which a live teacher would predict. The weight of its embedding depends on these scores, too.
    """

    kind = 'queries'

    @classmethod
    def can_store(cls, source: Source, family: Family) -> bool:
        """Return whether the source is the output or the input of a transformer's head."""
        return isinstance(family, Transformer) and source in (HEAD, QUERIES)

    @property
    def layers(self) -> list[int]:
        """The indices of the stored decoder layers."""
        return self.settings['layers']

    def lacks(self, needed: Content) -> str | None:
        """Name missing outputs or decoder layers; see :meth:`Content.lacks`."""
        absent = [str(layer) for layer in needed.settings['layers'] if layer not in self.layers]
        return super().lacks(needed) or (f'decoder layer {", ".join(absent)}' if absent else None)

    def extract(
        self, read: ReadOutput, shared: dict[str, Any], image: int, view: View
    ) -> dict[str, Tensor]:
        """Return scores, boxes and embeddings of an image's queries; see :meth:`Content.extract`."""
        count = num_queries(self.detector)
        scores, boxes = (value[self.layers, image, -count:] for value in read(HEAD))
        kept = {'queries.scores': to_half(scores, HEAD), 'queries.boxes': boxes.float()}
        if QUERIES in self.sources:
            embeddings = torch.stack([read(QUERIES)[layer] for layer in self.layers])
            kept['queries.embeddings'] = to_half(embeddings[:, image, -count:], QUERIES)
        return kept

    def restore(self, batch: Batch) -> Restored:
        """Transform the boxes of queries to the batch's views; see :meth:`Content.restore`."""
        scores, boxes = batch.stack('queries.scores'), batch.stack('queries.boxes')
        if not batch.transform.is_identity:
            transform = batch.transform.to(batch.device)
            old = boxes.new_tensor([view.size for view in batch.old]).repeat(1, 2)
            new = transform.size.repeat(1, 2)
            corners = bbox_cxcywh_to_xyxy(boxes) * old[:, None, None]
            corners, visible = transform.boxes(corners)
            boxes = bbox_xyxy_to_cxcywh(corners / new[:, None, None])
            gone = (visible < batch.min_visible)[..., None]
            nothing = scores.new_full((scores.shape[-1],), -NO_OBJECT)
            if uses_softmax(self.detector.bbox_head):
                nothing[-1] = NO_OBJECT
            scores = torch.where(gone, nothing, scores)
        values: dict[Source, Any] = {
            HEAD: (self._in_decoder_layout(scores), self._in_decoder_layout(boxes))
        }
        if QUERIES in self.sources:
            values[QUERIES] = self._in_decoder_layout(batch.stack('queries.embeddings'))
        return Restored(values, {}, {})

    def _in_decoder_layout(self, value: Tensor) -> Tensor:
        """Convert (N, stored layers, …) to the decoder's layout, (layers, N, …), with zeros elsewhere."""
        depth, value = self.detector.decoder.num_layers, value.transpose(0, 1)
        if self.layers == list(range(depth)):
            return value
        whole = value.new_zeros(depth, *value.shape[1:])
        whole[self.layers] = value
        return whole
