# Is CWD better with its published weight than with the hundredth of it in benchmarks/studies/voc_methods.py?
# One training run of full length with the published weight. Run with
# `--seeds 0 --results benchmarks/tuning.jsonl`.
_base_ = '../voc_methods.py'

# mmrazor 1.0, cwd_fpn_frcnn_r101_frcnn_r50_1x_coco.py: 10 per level, five levels.
weight = 10.0 * 5
recipes = {
    'cwd-published': dict(
        config='benchmarks/configs/voc/distilled.py',
        options={
            'model.losses.loss_kd_cls': None,
            'model.losses.loss_kd_bbox': None,
            'model.losses.loss_kd_neck': dict(
                type='CWD',
                student='neck',
                teacher='neck',
                connector=dict(type='ConvConnector', in_channels=[64] * 5, out_channels=128),
                loss_weight=weight,
            ),
        },
        cached=True,
    )
}
