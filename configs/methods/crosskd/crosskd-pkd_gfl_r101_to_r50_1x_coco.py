# CrossKD with PKD on the neck besides: GFL R101 teaches R50. Value: github.com/jbwang1997/CrossKD,
# configs/crosskd+pkd/crosskd+pkd_r50_gflv1_r101-2x-ms_fpn_1x_coco.py.
_base_ = './crosskd_gfl_r101_to_r50_1x_coco.py'

model = dict(
    losses=dict(
        loss_kd_neck=dict(
            type='PKD',
            student='neck',
            teacher='neck',
            # Padding counts there too: its PKDLoss.
            align=dict(type='FeatureAlignment', count_padding=True),
            loss_weight=6.0 * 5,  # 6 a level; levels are added up there, here the mean is taken
        )
    )
)
