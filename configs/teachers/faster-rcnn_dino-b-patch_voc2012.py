# DINO ViT-B/16 (Caron et al. 2021, arXiv 2104.14294): the patch tokens are the feature map, with a simple
# feature pyramid. This fixes faster-rcnn_dino-b-cls-repeat_voc2012.py.
#
# All weights are fine-tuned. model.backbone.frozen_stages freezes parts of the backbone: 12 all of it, 6 the
# first half, 0 the embeddings (configs/ablations/).
_base_ = '../_base_/faster-rcnn_vit.py'

model = dict(
    backbone=dict(
        init_cfg=dict(
            type='ConvertedCheckpoint',
            source='dino',
            checkpoint='https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/'
            'dino_vitbase16_pretrain.pth',
        ),
    ),
)
