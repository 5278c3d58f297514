# Effect on the gain: the length of training. `kl-mse` of methods.py for five epochs (the demo's number),
# for two and for ten. The teacher is the same.
_base_ = './methods.py'

demo = 'configs/demo/faster-rcnn_mobilenetv2_fpn.py'
distilled = 'configs/demo/faster-rcnn_r18_to_mobilenetv2.py'


def with_epochs(number):
    """Options that train for ``number`` epochs."""
    return {
        'train_cfg.max_epochs': number,
        'train_cfg.val_interval': number,
        'default_hooks.checkpoint.interval': number,
        'param_scheduler.1.end': number,
        'param_scheduler.1.T_max': number,
    }


recipes = dict(
    _delete_=True,
    **{
        'baseline-2': dict(config=demo, options=with_epochs(2), against='baseline-2'),
        'kl-mse-2': dict(config=distilled, options=with_epochs(2), against='baseline-2'),
        'baseline': dict(config=demo),
        'kl-mse': dict(config=distilled),
        'baseline-10': dict(config=demo, options=with_epochs(10), against='baseline-10'),
        'kl-mse-10': dict(config=distilled, options=with_epochs(10), against='baseline-10'),
    },
)
