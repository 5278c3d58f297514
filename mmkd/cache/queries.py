"""What the decoder of a detection transformer says of an image."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh
from torch import Tensor

from ..alignments.encoder_memory import QUERIES
from ..alignments.queries import HEAD, uses_softmax
from ..families import Family
from ..families.transformer import Transformer, num_queries
from ..recorder import Source
from .contents import Batch, Content, Read, Restored, half
from .views import View

# A decoder is trained to say no object by a score of about this much over those of the classes.
NO_OBJECT = 10.0


class QueryContent(Content):
    """Class scores and boxes of the decoder layers that are read, and their embeddings if they are.

    Boxes follow the image. A query whose box leaves the view says no object there, as the live
    teacher's would; its embedding, which is of an object that is not in view, counts by the same
    confidence and so hardly.
    """

    kind = 'queries'

    @classmethod
    def claims(cls, source: Source, family: Family) -> bool:
        return isinstance(family, Transformer) and source in (HEAD, QUERIES)

    @property
    def layers(self) -> list[int]:
        return self.settings['layers']

    def lacks(self, needed: Content) -> str | None:
        absent = [str(layer) for layer in needed.layers if layer not in self.layers]
        return super().lacks(needed) or (f'decoder layer {", ".join(absent)}' if absent else None)

    def extract(
        self, read: Read, shared: dict[str, Any], image: int, view: View
    ) -> dict[str, Tensor]:
        count = num_queries(self.detector)
        scores, boxes = (value[self.layers, image, -count:] for value in read(HEAD))
        kept = {'queries.scores': half(scores, HEAD), 'queries.boxes': boxes.float()}
        if QUERIES in self.sources:
            embeddings = torch.stack([read(QUERIES)[layer] for layer in self.layers])
            kept['queries.embeddings'] = half(embeddings[:, image, -count:], QUERIES)
        return kept

    def restore(self, batch: Batch) -> Restored:
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
            if uses_softmax(self.detector):
                nothing[-1] = NO_OBJECT
            scores = torch.where(gone, nothing, scores)
        values = {HEAD: (self._in_place(scores), self._in_place(boxes))}
        if QUERIES in self.sources:
            values[QUERIES] = self._in_place(batch.stack('queries.embeddings'))
        return Restored(values, {}, {})

    def _in_place(self, value: Tensor) -> Tensor:
        """Rows (N, kept layers, …) as the decoder gives them, (layers, N, …); others are zeros."""
        depth, value = self.detector.decoder.num_layers, value.transpose(0, 1)
        if self.layers == list(range(depth)):
            return value
        whole = value.new_zeros(depth, *value.shape[1:])
        whole[self.layers] = value
        return whole
