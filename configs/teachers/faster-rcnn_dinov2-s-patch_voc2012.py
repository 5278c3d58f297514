# The same with DINOv2 ViT-S/14.
_base_ = './faster-rcnn_dinov2-b-patch_voc2012.py'

model = dict(
    backbone=dict(
        arch='small',
        init_cfg=dict(
            checkpoint='https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/'
            'dinov2_vits14_reg4_pretrain.pth',
        ),
    ),
    neck=dict(in_channels=384),
)
