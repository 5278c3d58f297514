# The same with DINO ViT-S/16.
_base_ = './faster-rcnn_dino-b-patch_voc2012.py'

model = dict(
    backbone=dict(
        arch='small',
        init_cfg=dict(
            checkpoint='https://dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain/'
            'dino_deitsmall16_pretrain.pth',
        ),
    ),
    neck=dict(in_channels=384),
)
