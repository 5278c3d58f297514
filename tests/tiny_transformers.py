"""Configs of every kind of detection transformer, small enough for a test."""

from __future__ import annotations

from mmengine.config import ConfigDict
from mmengine.hub import get_config
from tiny_models import merge

NAMES = {
    'DETR': 'mmdet::detr/detr_r50_8xb2-150e_coco.py',
    'ConditionalDETR': 'mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
    'DABDETR': 'mmdet::dab_detr/dab-detr_r50_8xb2-50e_coco.py',
    'DeformableDETR': 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'TwoStageDeformableDETR': (
        'mmdet::deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py'
    ),
    'DINO': 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
}
KINDS = tuple(NAMES)


def transformer(
    kind: str = 'DETR',
    classes: int = 3,
    queries: int = 8,
    width: int | None = None,
    layers: tuple[int, int] = (1, 2),
    **changes,
) -> ConfigDict:
    """mmdet's own config of a kind, made narrow and shallow; ``changes`` are merged into it.

    Args:
        kind: One of :data:`KINDS`.
        classes: Foreground classes.
        queries: Number of queries.
        width: Of tokens and queries; the smallest that mmdet allows the kind by default.
        layers: Of encoder and decoder.
        changes: Nested dicts to merge.
    """
    # These embed positions in 256 channels whatever the width (DINO in mmdet 3.3.0).
    fixed = ('ConditionalDETR', 'TwoStageDeformableDETR', 'DINO')
    width = width or (256 if kind in fixed else 32)
    model = get_config(NAMES[kind]).model
    levels = model.backbone.out_indices
    model.num_queries = queries
    model.backbone = dict(
        type='ResNet', depth=18, stem_channels=8, base_channels=8, out_indices=levels
    )
    model.neck.update(in_channels=[8 * 2**level for level in levels], out_channels=width)
    if model.neck.get('norm_cfg'):
        model.neck.norm_cfg = dict(type='GN', num_groups=4)
    for name, count in zip(('encoder', 'decoder'), layers, strict=True):
        coder = model[name]
        coder.num_layers = count
        for part in coder.layer_cfg.values():
            part.embed_dims = width
            if 'num_heads' in part:
                part.num_heads = 4
            if 'feedforward_channels' in part:
                part.feedforward_channels = 2 * width
    model.positional_encoding.num_feats = width // 2
    model.bbox_head.update(num_classes=classes, embed_dims=width)
    model.test_cfg.max_per_img = queries
    merge(model, changes)
    return model
