"""Detection transformers: DETR, Conditional DETR, DAB-DETR, Deformable DETR and DINO."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.models.detectors import (
    DABDETR,
    DDQDETR,
    DETR,
    DINO,
    ConditionalDETR,
    DeformableDETR,
    GroundingDINO,
)
from mmdet.models.layers import inverse_sigmoid
from mmdet.structures import SampleList
from torch import Tensor

from ..errors import ConfigError
from ..recorder import Recorder, Source
from ..types import Detector
from .base import Family

# Two dicts: encoder inputs and decoder inputs. mmdet adds queries and memory to the second one later.
TRANSFORMER_INPUTS = Source('', method='pre_transformer')

# Subclasses come before their parents. A detector derived from one of these runs like it.
KINDS = (DINO, DeformableDETR, DABDETR, ConditionalDETR, DETR)
# Derived from DINO, but with other queries: three groups of queries, or words of a text.
UNSUPPORTED = (DDQDETR, GroundingDINO)


class Transformer(Family):
    """Runs backbone, neck, encoder, decoder and head of a detection transformer.

    The teacher decodes its own queries. A DINO teacher is in evaluation mode and has no denoising
    queries. For :class:`mmkd.alignments.SharedQueryAlignment`, both models also decode the same queries.

    Args:
        detector: One of :data:`KINDS`.
        random_queries: Number of random queries that both models decode in addition to the teacher's own,
            if queries are shared. Default: as many as the teacher has queries. In KD-DETR's study (arXiv
            2211.08071), up to 300 helped and 900 were worse.

    Examples:
        >>> from mmengine.hub import get_model
        >>> from mmkd.families import family_of
        >>> from mmkd.recorder import Source
        >>> detector = get_model('mmdet::detr/detr_r50_8xb2-150e_coco.py')
        >>> family = family_of(detector, random_queries=50)
        >>> type(family).__name__, family.part_of(Source('decoder.layers.5'))
        ('Transformer', 'decoder')
    """

    parts = dict(
        Family.parts,
        encoder='encoder',
        decoder='decoder',
        query_embedding='decoder',
        bbox_head='head',
    )
    methods = dict(
        Family.methods,
        # mmdet adds the chosen queries to this result, so it is complete only in the joint pass.
        pre_transformer='joint',
        forward_encoder='encoder',
        pre_decoder='decoder',
        forward_decoder='decoder',
    )

    def __init__(
        self, detector: Detector, random_queries: int | None = None, **options: Any
    ) -> None:
        super().__init__(detector, **options)
        if random_queries is not None and random_queries < 0:
            raise ConfigError(f'teacher.random_queries: must be at least 0, got {random_queries}')
        self.random_queries = num_queries(detector) if random_queries is None else random_queries

    @classmethod
    def covers(cls, detector: Detector) -> bool:
        """Return whether the detector is one of :data:`KINDS` or derived from one, and supported."""
        return isinstance(detector, KINDS) and not isinstance(detector, UNSUPPORTED)

    def joint_part_of(self, source: Source) -> str:
        """Return ``joint`` for outputs of decoder and head, else the part of the teacher's own pass."""
        part = self.part_of(source)
        return 'joint' if part in ('decoder', 'head') else part

    def student_sources(self, parts: set[str], student: Detector) -> list[Source]:
        """Return the student's transformer inputs if queries are shared, so that the student runs first."""
        # The student must draw its random numbers (dropout, denoising) before the random queries are
        # drawn. It then draws the same numbers as without a teacher.
        return self.joint_sources(parts)

    def joint_sources(self, parts: set[str]) -> list[Source]:
        """Return the transformer inputs, which the joint pass completes with the shared queries."""
        return [TRANSFORMER_INPUTS] if 'joint' in parts else []

    def joint_parts(self, parts: set[str]) -> set[str]:
        """Return ``{'joint'}`` if queries are shared, else an empty set."""
        return parts & {'joint'}

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
            ``queries`` if they are shared: decoder inputs by name, each of shape (N, queries, …).
        """
        model = self.detector
        if not parts:
            return {}
        features = model.extract_feat(inputs)
        if parts == {'features'}:
            return {}
        encoder_inputs, decoder_inputs = model.pre_transformer(features, data_samples)
        encoded = model.forward_encoder(**encoder_inputs)
        if parts <= {'features', 'encoder'}:
            return {}
        samples = dict(batch_data_samples=data_samples) if isinstance(model, DINO) else {}
        chosen, _ = model.pre_decoder(**encoded, **samples)
        decoder_inputs.update(chosen)
        if parts & {'decoder', 'head'}:
            decoded = model.forward_decoder(**decoder_inputs)
            if 'head' in parts:
                _predict(model, decoded)
        return dict(queries=self.queries(chosen)) if 'joint' in parts else {}

    def run_joint_parts(
        self, model: Detector, recorded: Recorder, shared: dict[str, Any], parts: set[str]
    ) -> None:
        """Run decoder and head of one model on the shared queries; see :meth:`Family.run_joint_parts`."""
        inputs = dict(recorded[TRANSFORMER_INPUTS][1], **shared['queries'])
        if isinstance(model, DINO):
            inputs['dn_mask'] = None  # it belongs to the student's denoising queries
        if not _has_content(model):
            # DETR's decoder starts from zeros of the model's own width.
            inputs['query'] = inputs['query_pos'].new_zeros(
                *inputs['query_pos'].shape[:2], model.embed_dims
            )
        _predict(model, model.forward_decoder(**inputs))

    def queries(self, chosen: dict[str, Any]) -> dict[str, Tensor]:
        """Return the teacher's own queries followed by random queries.

        Args:
            chosen: The teacher's decoder inputs, as returned by its ``pre_decoder``.

        Returns:
            The decoder inputs that define queries, by name, each of shape (N, own + random, …).
        """
        names = [name for name in ('query', 'query_pos', 'reference_points') if name in chosen]
        own: dict[str, Tensor] = {name: chosen[name] for name in names}
        if not _has_content(self.detector):
            del own['query']
        if not self.random_queries:
            return own
        drawn = self._draw_random_queries(own)
        return {name: torch.cat([value, drawn[name]], 1) for name, value in own.items()}

    def _draw_random_queries(self, own: dict[str, Tensor]) -> dict[str, Tensor]:
        """Draw random queries with the form and scale of the teacher's own.

        A box query has a uniformly random centre and the size of one of the teacher's boxes. An embedding
        query is drawn from a normal distribution with the mean and deviation of the teacher's embeddings.
        """
        model, like = self.detector, next(iter(own.values()))
        images, count = like.shape[0], self.random_queries
        pick = torch.randint(like.shape[1], (images, count, 1), device=like.device)

        def some_of(value: Tensor) -> Tensor:
            return value.gather(1, pick.expand(-1, -1, value.shape[-1]))

        def resembling(value: Tensor) -> Tensor:
            noise = torch.randn(images, count, value.shape[-1], device=like.device)
            return (noise * value.std(1, keepdim=True) + value.mean(1, keepdim=True)).to(value)

        def box(value: Tensor) -> Tensor:
            centre = torch.rand(images, count, 2, device=like.device).to(value)
            return torch.cat([centre, some_of(value)[..., 2:]], -1)

        if isinstance(model, DINO):
            return dict(query=some_of(own['query']), reference_points=box(own['reference_points']))
        if isinstance(model, DeformableDETR) and model.as_two_stage:
            boxes = box(own['reference_points'])
            embedded = model.get_proposal_pos_embed(inverse_sigmoid(boxes))
            embedded = model.pos_trans_norm(model.pos_trans_fc(embedded))
            query_pos, query = embedded.split(model.embed_dims, -1)
            return dict(query=query, query_pos=query_pos, reference_points=boxes)
        if isinstance(model, DeformableDETR):
            query_pos = resembling(own['query_pos'])
            points = model.reference_points_fc(query_pos).sigmoid()
            return dict(
                query=resembling(own['query']), query_pos=query_pos, reference_points=points
            )
        if isinstance(model, DABDETR):
            drawn = dict(query_pos=inverse_sigmoid(box(own['query_pos'].sigmoid()), eps=1e-3))
            return dict(drawn, query=some_of(own['query'])) if 'query' in own else drawn
        return dict(query_pos=resembling(own['query_pos']))


def is_transformer(model: Detector) -> bool:
    """Return whether a detector belongs to this family."""
    return Transformer.covers(model)


def num_queries(model: Detector) -> int:
    """Return the number of queries that detect objects, without denoising queries, which come first."""
    return model.num_queries * max(getattr(model, 'num_patterns', 0), 1)


def queries_from_image(model: Detector) -> bool:
    """Return whether the encoder selects the queries of each image. Their order then has no meaning."""
    return getattr(model, 'as_two_stage', False)


def query_form(model: Detector) -> str:
    """Describe the form of a detector's queries; detectors with the same form can decode the same queries."""
    kind = next(kind for kind in KINDS if isinstance(model, kind))
    if kind is DABDETR:
        content = f' and contents of {model.embed_dims}' if model.num_patterns else ''
        return f'{kind.__name__} anchors of {model.query_dim} numbers{content}'
    chosen = ' chosen by the encoder' if queries_from_image(model) else ''
    return f'{kind.__name__} queries of {model.embed_dims} channels{chosen}'


def _has_content(model: Detector) -> bool:
    return isinstance(model, DeformableDETR) or getattr(model, 'num_patterns', 0) > 0


def _predict(model: Detector, decoded: dict[str, Any]) -> None:
    # Positional arguments, as mmdet passes them in training: a Source selects inputs by position.
    references = (decoded['references'],) if 'references' in decoded else ()
    model.bbox_head(decoded['hidden_states'], *references)
