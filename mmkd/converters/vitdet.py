"""ViTDet: backbone and feature pyramid of detectron2's detectors, without their heads.

Names: github.com/facebookresearch/detectron2, detectron2/modeling/backbone/vit.py.
"""

from __future__ import annotations

from .format import Format, with_suffixes
from .vision_transformers import LAYER, PATCH_EMBED

# Per level, indices in detectron2's Sequential: the transposed convolutions and the norm between them, the
# 1x1 and the 3x3 convolution. Activations and pooling take an index but have no weights.
LEVELS = {2: ((0, 1, 3), 4, 5), 3: ((0,), 1, 2), 4: ((), 0, 1), 5: ((), 1, 2)}


def _pyramid() -> dict[str, str]:
    names: dict[str, str] = {}
    for level, (stage, (resample, first, second)) in enumerate(LEVELS.items()):
        old, new = f'backbone.simfp_{stage}', f'neck.convs.{level}'
        modules = {f'{old}.{index}': f'neck.levels.{level}.{index}' for index in resample}
        modules |= {f'{old}.{first}.norm': f'{new}.1', f'{old}.{second}.norm': f'{new}.3'}
        names |= with_suffixes(modules, 'weight', 'bias')
        names |= with_suffixes(
            {f'{old}.{first}': f'{new}.0', f'{old}.{second}': f'{new}.2'}, 'weight'
        )
    return names


REL_POS = {'attn.rel_pos_h': 'attn.rel_pos_h', 'attn.rel_pos_w': 'attn.rel_pos_w'}
BACKBONE = {'pos_embed': 'pos_embed', **PATCH_EMBED}

VITDET = Format(
    names={**{f'backbone.net.{a}': f'backbone.{b}' for a, b in BACKBONE.items()}, **_pyramid()},
    layer_names={**LAYER, **REL_POS},
    layer_prefixes=('backbone.net.blocks.', 'backbone.layers.'),
    optional=frozenset(REL_POS),  # detectron2 can disable relative positions
    dropped=r'(proposal_generator|roi_heads)\..+|pixel_(mean|std)',
)
