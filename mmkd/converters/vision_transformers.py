"""DINO, DINOv2 and MAE: three releases of one transformer with similar names.

DINO: github.com/facebookresearch/dino, vision_transformer.py and main_dino.py (its training checkpoints).
DINOv2: github.com/facebookresearch/dinov2, dinov2/models/vision_transformer.py and dinov2/layers/.
MAE: github.com/facebookresearch/mae, models_mae.py (pretraining) and models_vit.py (fine-tuning).
"""

from __future__ import annotations

from .format import Format, with_suffixes

TOKENS = {'cls_token': 'cls_token', 'pos_embed': 'pos_embed'}
PATCH_EMBED = with_suffixes({'patch_embed.proj': 'patch_embed.projection'}, 'weight', 'bias')
FINAL_NORM = with_suffixes({'norm': 'ln1'}, 'weight', 'bias')
LAYER = with_suffixes(
    {
        'norm1': 'ln1',
        'attn.qkv': 'attn.qkv',
        'attn.proj': 'attn.proj',
        'norm2': 'ln2',
        'mlp.fc1': 'ffn.layers.0.0',
        'mlp.fc2': 'ffn.layers.1',
    },
    'weight',
    'bias',
)

DINO = Format(
    names={**TOKENS, **PATCH_EMBED, **FINAL_NORM},
    layer_names=LAYER,
    dropped=r'head\..+',  # the projection head, only in training checkpoints
    cut=r'^backbone\.',
)

DINOV2 = Format(
    names={**TOKENS, 'register_tokens': 'register_tokens', **PATCH_EMBED, **FINAL_NORM},
    layer_names={
        **LAYER,
        'ls1.gamma': 'attn.gamma1.weight',
        'ls2.gamma': 'ffn.gamma2.weight',
    },
    optional=frozenset({'register_tokens'}),
    dropped=r'mask_token|(dino|ibot)_head\..+',
    # Training checkpoints group layers into chunks, blocks.CHUNK.LAYER; LAYER counts across chunks.
    cut=r'^backbone\.|(?<=blocks\.)\d+\.(?=\d+\.)',
)

MAE = Format(
    names={**TOKENS, **PATCH_EMBED, **FINAL_NORM},
    layer_names=LAYER,
    optional=frozenset(FINAL_NORM),  # fine-tuned models pool first and have fc_norm instead
    dropped=r'mask_token|decoder_.+|(fc_norm|head)\..+',
)
