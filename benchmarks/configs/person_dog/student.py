# A smaller detector on YOLOX-nano's backbone, which stays as it is: a plain pyramid of 32 channels in place
# of YOLOX's, and a head of half the channels with one layer a tower. Plain MMDetection.
_base_ = './yolox-nano.py'

model = dict(
    backbone=dict(frozen_stages=4, norm_eval=True),  # all of it
    neck=dict(
        _delete_=True,
        type='FPN',
        in_channels=[64, 128, 256],
        out_channels=32,
        num_outs=3,
    ),
    bbox_head=dict(in_channels=32, feat_channels=32, stacked_convs=1),
)
