# DINOv2 ViT-B/14 with registers (Oquab et al. 2023, arXiv 2304.07193; Darcet et al. 2023, arXiv
# 2309.16588): the patch tokens are the feature map, with a simple feature pyramid.
_base_ = '../_base_/faster-rcnn_vit.py'

model = dict(
    backbone=dict(
        img_size=518,  # the image size of the stored position embeddings
        patch_size=14,
        # Images are resized by 14/16: a patch covers 16 pixels of the input, and levels have FPN's strides.
        stride=16,
        num_registers=4,
        antialias=True,  # as published for the models with registers
        layer_scale=1.0,  # enables layer scale; the checkpoint has the values
        init_cfg=dict(
            type='ConvertedCheckpoint',
            source='dinov2',
            checkpoint='https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/'
            'dinov2_vitb14_reg4_pretrain.pth',
        ),
    ),
)
