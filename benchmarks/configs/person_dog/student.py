# A smaller detector on YOLOX-nano's frozen backbone: an FPN of 32 channels instead of YOLOX's neck, and a
# head with half the channels and one layer per tower. Plain MMDetection.
_base_ = './yolox-nano.py'

model = dict(
    backbone=dict(frozen_stages=4, norm_eval=True),  # freezes the whole backbone
    neck=dict(
        _delete_=True,
        type='FPN',
        in_channels=[64, 128, 256],
        out_channels=32,
        num_outs=3,
    ),
    bbox_head=dict(in_channels=32, feat_channels=32, stacked_convs=1),
)
