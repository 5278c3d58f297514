# The demo's student. Trained alone, this config is the baseline. Plain mmdet.
# It has the teacher's layers, with a quarter of the channels in the backbone and half of them in neck and
# heads. On a CPU it takes less than half of the teacher's time. At this size, a student of depthwise
# convolutions (faster-rcnn_mobilenetv2_fpn.py) takes more.
_base_ = './_base_/faster-rcnn_small-images.py'

model = dict(
    backbone=dict(depth=18, stem_channels=16, base_channels=8),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=32),
    rpn_head=dict(in_channels=32, feat_channels=32),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32),
        bbox_head=dict(in_channels=32, conv_out_channels=32, fc_out_channels=128),
    ),
)
