# DIST, and the feature maps of the neck ("mimic"), with one 1x1 convolution per level.
# Value: same source as the base config.
_base_ = './dist_faster-rcnn_cascade-x101_to_r50_2x_coco.py'

model = dict(
    losses=dict(
        loss_kd_neck=dict(
            type='MSE',
            student='neck',
            teacher='neck',
            # The source counts padding too: models/losses/mse.py.
            align=dict(type='FeatureAlignment', count_padding=True),
            connector=dict(type='ConvConnector', in_channels=[256] * 5, out_channels=256),
            # 1 per level: the source sums over the five levels, mmkd takes the mean.
            loss_weight=1.0 * 5,
        )
    )
)
