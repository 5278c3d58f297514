# mmdet's Faster R-CNN, sized for pictures of 160 px. Backbone and neck are the child's.
_base_ = ['mmdet::_base_/models/faster-rcnn_r50_fpn.py', './drawn_scenes.py']

model = dict(
    backbone=dict(init_cfg=None, frozen_stages=-1, norm_eval=False),  # from random weights
    neck=dict(out_channels=64, num_outs=4),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        # Anchors of 16 to 128 px: the drawn objects measure 12 to 100.
        anchor_generator=dict(scales=[4], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            # tuned for the demo: with mmdet's adaptive grid RoIAlign is a third of a step on CPU
            roi_layer=dict(sampling_ratio=1),
            out_channels=64,
        ),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=6),
    ),
    # Fewer proposals than mmdet's 1000 and 512: a picture holds at most five objects.
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=200, max_per_img=200),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=100, max_per_img=100), rcnn=dict(max_per_img=50)),
)
