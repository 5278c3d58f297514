# A MobileNetV2 student for the synthetic images. Trained alone, this config is the baseline. Plain mmdet.
_base_ = './_base_/faster-rcnn_small-images.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='MobileNetV2',
        widen_factor=0.35,  # the narrowest of Sandler et al. 2018 (arXiv 1801.04381), sec. 6.1
        out_indices=(1, 2, 4, 6),
    ),
    # tuned for the demo: half the teacher's widths
    neck=dict(in_channels=[8, 16, 32, 112], out_channels=32),
    rpn_head=dict(in_channels=32, feat_channels=32),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32),
        bbox_head=dict(in_channels=32, conv_out_channels=32, fc_out_channels=128),
    ),
)
