# Do FPN features improve the recipes of benchmarks/studies/voc.py? One training run of full length. Run with
# `--seeds 0 --results benchmarks/tuning.jsonl`.
_base_ = '../voc.py'

backbone = {'model.init_student': dict(from_teacher=['backbone'])}
# FPN features of a live teacher: a cache can flip stored maps only approximately.
levels = 5
maps = {
    'model.losses.loss_kd_neck': dict(
        type='PKD',
        student='neck',
        teacher='neck',
        connector=dict(type='ConvConnector', in_channels=[64] * levels, out_channels=128),
        # 1 per level: better than 6, PKD's weight for Faster R-CNN (tuning.jsonl).
        loss_weight=1.0 * levels,
    )
}
recipes = {
    'inherit-kl-mse-pkd': dict(
        config='benchmarks/configs/voc/distilled.py', options={**backbone, **maps}
    ),
}
