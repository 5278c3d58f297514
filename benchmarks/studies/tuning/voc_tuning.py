# Which losses and weights for benchmarks/studies/voc.py: on a fifth of its training images, held out, with
# half its epochs. Single trainings; nothing of this is a result, the less as the given teacher was trained on
# the held-out images too. Run with
# `--results benchmarks/tuning.jsonl`, where the trainings are written down.
_base_ = '../voc.py'

held_out = 0.2
seeds = (7,)
options = {
    'train_cfg.max_epochs': 2,
    'train_cfg.val_interval': 2,
    'default_hooks.checkpoint.interval': 2,
    'param_scheduler.1.end': 2,
}
distilled = 'benchmarks/configs/voc/distilled.py'
levels = 5


def maps(type, weight):
    return {
        'model.losses.loss_kd_neck': dict(
            type=type,
            student='neck',
            teacher='neck',
            connector=dict(type='ConvConnector', in_channels=[64] * levels, out_channels=128),
            loss_weight=weight * levels,
        )
    }


objectness = {
    'model.losses.loss_kd_rpn': dict(
        type='SoftLabelBCE',
        beta=0.0,
        student='rpn_head.rpn_cls',
        teacher='rpn_head.rpn_cls',
        align=dict(type='RPNClassAlignment'),
    )
}


def weights(cls, bbox):
    return {
        'model.losses.loss_kd_cls.loss_weight': cls,
        'model.losses.loss_kd_bbox.loss_weight': bbox,
    }


only_maps = {'model.losses.loss_kd_cls': None, 'model.losses.loss_kd_bbox': None}
backbone = {'model.init_student': dict(from_teacher=['backbone'])}
plain, rate = 'benchmarks/configs/voc/student.py', 'optim_wrapper.optimizer.lr'
recipes = {
    'baseline-lr20': dict(config=plain, options={rate: 0.02}),
    'baseline-lr30': dict(config=plain, options={rate: 0.03}),
    'kl-mse': dict(config=distilled, options=weights(1.0, 1.0), cached=True),
    'kl-mse-0.3': dict(config=distilled, cached=True),
    'pkd-1': dict(config=distilled, options={**only_maps, **maps('PKD', 1.0)}, cached=True),
    'kl-rpn': dict(config=distilled, options={**weights(0.5, 0.0), **objectness}, cached=True),
    'inherit': dict(config=distilled, options={**backbone, **only_maps}),
    'inherit-kl-mse-0.3': dict(config=distilled, options=backbone, cached=True),
    'inherit-kl-mse-1': dict(
        config=distilled, options={**backbone, **weights(1.0, 1.0)}, cached=True
    ),
    # With the maps of the live teacher: a cache brings them over to flipped images only roughly.
    'inherit-kl-mse-pkd-1': dict(config=distilled, options={**backbone, **maps('PKD', 1.0)}),
    'inherit-kl-mse-cwd-10': dict(config=distilled, options={**backbone, **maps('CWD', 10.0)}),
}
