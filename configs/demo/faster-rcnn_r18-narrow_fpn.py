# The demo's student, and as it stands the baseline; plain mmdet. The teacher's layers with a quarter of its
# channels in the backbone and half of them above: on a CPU it takes less than half of the teacher's time,
# which depthwise convolutions (faster-rcnn_mobilenetv2_fpn.py) do not at this size.
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
