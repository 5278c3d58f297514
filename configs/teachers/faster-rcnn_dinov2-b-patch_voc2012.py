# DINOv2 ViT-B/14 with registers (Oquab et al. 2023, arXiv 2304.07193; Darcet et al. 2023, arXiv
# 2309.16588): its patch tokens as a feature map, with a simple feature pyramid.
_base_ = '../_base_/faster-rcnn_vit.py'

model = dict(
    backbone=dict(
        img_size=518,  # for which its positions are kept
        patch_size=14,
        # Images are shrunk by 14/16, so that a patch covers 16 pixels and levels have FPN's strides.
        stride=16,
        num_registers=4,
        antialias=True,  # as published with registers
        layer_scale=1.0,  # there are scales; their values come with the weights
        init_cfg=dict(
            type='ConvertedCheckpoint',
            source='dinov2',
            checkpoint='https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/'
            'dinov2_vitb14_reg4_pretrain.pth',
        ),
    ),
)
