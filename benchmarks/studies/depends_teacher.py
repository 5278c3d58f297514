# Effect on the gain: the quality of the teacher. `kl-mse` of methods.py, with a teacher trained for one
# epoch instead of five.
_base_ = './methods.py'

teacher = dict(
    options={
        'train_cfg.max_epochs': 1,
        'train_cfg.val_interval': 1,
        'default_hooks.checkpoint.interval': 1,
        'param_scheduler.1.end': 1,
        'param_scheduler.1.T_max': 1,
    }
)
recipes = dict(
    _delete_=True,
    **{
        'baseline': dict(config='configs/demo/faster-rcnn_mobilenetv2_fpn.py'),
        'kl-mse': dict(config='configs/demo/faster-rcnn_r18_to_mobilenetv2.py'),
    },
)
