# mmdet's Faster R-CNN for images of 160 px, trained from random weights.
# Child configs set the backbone and the widths.
_base_ = ['mmdet::_base_/models/faster-rcnn_r50_fpn.py', './drawn_scenes.py']

# Batch norm in every part: without normalisation, training from random weights is slow (He, Girshick and
# Dollar 2018, arXiv 1811.08883, sec. 3). mmdet's configs/scratch use GroupNorm for the same reason.
norm_cfg = dict(type='BN')

model = dict(
    backbone=dict(init_cfg=None, frozen_stages=-1, norm_eval=False),
    neck=dict(out_channels=64, num_outs=4, norm_cfg=norm_cfg),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        # Anchors of 16 to 128 px; the synthetic objects measure 15 to 70 px.
        anchor_generator=dict(scales=[4], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            # tuned for the demo: mmdet's adaptive grid makes RoIAlign a third of the step on a CPU
            roi_layer=dict(sampling_ratio=1),
            out_channels=64,
        ),
        bbox_head=dict(
            # As configs/scratch: convolutions before the fully connected layer, two instead of four
            type='ConvFCBBoxHead',
            num_shared_convs=2,
            num_shared_fcs=1,
            in_channels=64,
            conv_out_channels=64,
            fc_out_channels=256,
            norm_cfg=norm_cfg,
            num_classes=6,
        ),
    ),
    # Fewer proposals than mmdet's 1000 and 512: an image has at most nine objects.
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=200, max_per_img=200),
        # tuned for the demo: half of the sampled proposals are positive instead of a quarter
        rcnn=dict(sampler=dict(num=64, pos_fraction=0.5)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=100, max_per_img=100), rcnn=dict(max_per_img=50)),
)
