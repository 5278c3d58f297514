# DINO ViT-B/16 (Caron et al. 2021, arXiv 2104.14294): its patch tokens as a feature map, with a simple
# feature pyramid. That is what mends faster-rcnn_dino-b-cls-repeat_voc2012.py.
#
# Fine-tuned as a whole; model.backbone.frozen_stages freezes: 12 all of it, 6 the first half, 0 the
# embeddings (configs/ablations/).
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
