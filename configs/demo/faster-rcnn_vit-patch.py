# Faster R-CNN on the patch tokens of a plain vision transformer, for images of 160 px: a scaled-down
# teachers/faster-rcnn_dino-b-patch_voc2012.py, trained from random weights.
_base_ = './_base_/faster-rcnn_small-images.py'
custom_imports = dict(imports=['mmkd'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type='VisionTransformer',
        # tuned for the demo: narrower and shallower than any published one
        arch=dict(embed_dims=128, num_layers=6, num_heads=4),
        img_size=160,
        patch_size=8,
    ),
    neck=dict(
        _delete_=True,
        type='SimpleFeaturePyramid',
        in_channels=128,
        out_channels=64,
        in_stride=8,
        num_outs=4,
    ),
)

optim_wrapper = dict(
    optimizer=dict(
        _delete_=True,
        type='AdamW',
        lr=0.001,  # tuned for the demo
        weight_decay=0.05,  # tuned for the demo
    ),
    clip_grad=dict(max_norm=1.0),  # tuned for the demo
)
