# The teacher: Faster R-CNN with ImageNet's MobileNetV2 and an FPN of 128 channels. Plain MMDetection.
_base_ = ['mmdet::_base_/models/faster-rcnn_r50_fpn.py', './data.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='MobileNetV2',
        out_indices=(1, 2, 4, 7),  # strides 4 to 32
        act_cfg=dict(type='ReLU6'),  # as the weights were trained
        norm_eval=True,  # as mmdet's ResNets: eight images are too few for batch statistics
    ),
    neck=dict(in_channels=[24, 32, 96, 1280], out_channels=128),
    rpn_head=dict(in_channels=128, feat_channels=128),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=128, roi_layer=dict(sampling_ratio=2)),
        bbox_head=dict(in_channels=128, fc_out_channels=512, num_classes=6),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=300),
        rcnn=dict(sampler=dict(num=96)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=200)),
)
