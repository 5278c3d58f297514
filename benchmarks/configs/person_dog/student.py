# A smaller detector on YOLOX-nano's backbone, which stays as it is: half the channels out of the pyramid and
# in the head, one layer a tower. Plain MMDetection.
_base_ = './yolox-nano.py'

model = dict(
    backbone=dict(frozen_stages=4, norm_eval=True),  # all of it
    neck=dict(out_channels=32),
    bbox_head=dict(in_channels=32, feat_channels=32, stacked_convs=1),
)
