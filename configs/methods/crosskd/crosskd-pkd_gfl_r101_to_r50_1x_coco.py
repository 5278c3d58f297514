# CrossKD, and PKD on the neck: GFL R101 teaches R50. Value: github.com/jbwang1997/CrossKD,
# configs/crosskd+pkd/crosskd+pkd_r50_gflv1_r101-2x-ms_fpn_1x_coco.py.
_base_ = './crosskd_gfl_r101_to_r50_1x_coco.py'

model = dict(
    losses=dict(
        loss_kd_neck=dict(
            type='PKD',
            student='neck',
            teacher='neck',
            # CrossKD's PKDLoss counts padding too.
            align=dict(type='FeatureAlignment', count_padding=True),
            # 6 per level: CrossKD sums over the five levels, mmkd takes the mean.
            loss_weight=6.0 * 5,
        )
    )
)
