# The demo's teacher. Plain mmdet.
_base_ = './_base_/faster-rcnn_small-images.py'

model = dict(
    backbone=dict(depth=18, base_channels=32),  # tuned for the demo: half the usual width
    neck=dict(in_channels=[32, 64, 128, 256]),
)
