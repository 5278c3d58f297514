# Tuning for benchmarks/studies/voc.py on a fifth of its training images, held out, with half its epochs:
# losses and their weights. The lines are in benchmarks/tuning.jsonl; run with `--results
# benchmarks/tuning.jsonl`. These are single runs, not results; and the teacher was trained on the held-out
# images too.
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


def neck_loss(type, weight):
    """Options that add a loss on the feature maps of the necks."""
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


def loss_weights(cls, bbox):
    """Options that set the weights of the class loss and the box loss."""
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
    'kl-mse': dict(config=distilled, options=loss_weights(1.0, 1.0), cached=True),
    'kl-mse-0.3': dict(config=distilled, cached=True),
    'pkd-1': dict(config=distilled, options={**only_maps, **neck_loss('PKD', 1.0)}, cached=True),
    'kl-rpn': dict(config=distilled, options={**loss_weights(0.5, 0.0), **objectness}, cached=True),
    'inherit': dict(config=distilled, options={**backbone, **only_maps}),
    'inherit-kl-mse-0.3': dict(config=distilled, options=backbone, cached=True),
    'inherit-kl-mse-1': dict(
        config=distilled, options={**backbone, **loss_weights(1.0, 1.0)}, cached=True
    ),
    # A live teacher: a cache can flip stored maps only approximately.
    'inherit-kl-mse-pkd-1': dict(config=distilled, options={**backbone, **neck_loss('PKD', 1.0)}),
    'inherit-kl-mse-cwd-10': dict(config=distilled, options={**backbone, **neck_loss('CWD', 10.0)}),
}
