# DIST with the neck's maps besides ("mimic"). Value: as its base; a 1x1 convolution a level.
_base_ = './dist_faster-rcnn_cascade-x101_to_r50_2x_coco.py'

model = dict(
    losses=dict(
        loss_kd_neck=dict(
            type='MSE',
            student='neck',
            teacher='neck',
            # Padding counts there too: models/losses/mse.py.
            align=dict(type='FeatureAlignment', count_padding=True),
            connector=dict(type='ConvConnector', in_channels=[256] * 5, out_channels=256),
            loss_weight=1.0 * 5,  # 1 a level; levels are added up there, here the mean is taken
        )
    )
)
