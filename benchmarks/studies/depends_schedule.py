# What does the gain depend on: how long the student is trained. The pair and the losses of `make demo`,
# for its five epochs, for two and for ten; the teacher is the same.
_base_ = './methods.py'

demo = 'configs/demo/faster-rcnn_mobilenetv2_fpn.py'
distilled = 'configs/demo/faster-rcnn_r18_to_mobilenetv2.py'


def epochs(number):
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
        'baseline-2': dict(config=demo, options=epochs(2), against='baseline-2'),
        'kl-mse-2': dict(config=distilled, options=epochs(2), against='baseline-2'),
        'baseline': dict(config=demo),
        'kl-mse': dict(config=distilled),
        'baseline-10': dict(config=demo, options=epochs(10), against='baseline-10'),
        'kl-mse-10': dict(config=distilled, options=epochs(10), against='baseline-10'),
    },
)
