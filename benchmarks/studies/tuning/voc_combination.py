# The maps of the pyramids too, beside what benchmarks/studies/voc.py has: one whole training, to see whether
# they add to it. Run with `--seeds 0 --results benchmarks/tuning.jsonl`.
_base_ = '../voc.py'

backbone = {'model.init_student': dict(from_teacher=['backbone'])}
# The pyramids' maps; with the live teacher, as a cache brings maps over to flipped images only roughly.
levels = 5
maps = {
    'model.losses.loss_kd_neck': dict(
        type='PKD',
        student='neck',
        teacher='neck',
        connector=dict(type='ConvConnector', in_channels=[64] * levels, out_channels=128),
        loss_weight=1.0 * levels,  # of 1 and 6, PKD's for Faster R-CNN, the better (tuning.jsonl)
    )
}
recipes = {
    'inherit-kl-mse-pkd': dict(
        config='benchmarks/configs/voc/distilled.py', options={**backbone, **maps}
    ),
}
