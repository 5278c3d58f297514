# The same with DINO ViT-B/8: patches of 8 pixels, so four times the tokens and 16 times the attention cost.
_base_ = './faster-rcnn_dino-b-patch_voc2012.py'

model = dict(
    backbone=dict(
        patch_size=8,
        init_cfg=dict(
            checkpoint='https://dl.fbaipublicfiles.com/dino/dino_vitbase8_pretrain/'
            'dino_vitbase8_pretrain.pth',
        ),
    ),
    neck=dict(in_stride=8),
)
