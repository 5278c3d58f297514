# Effect on the gain: the temperature of the KL divergence. `kl-mse` of methods.py has 2; the other recipes
# have 1, 4 and 8.
_base_ = './methods.py'

distilled = 'configs/demo/faster-rcnn_r18_to_mobilenetv2.py'
tau = 'model.losses.loss_kd_cls.tau'
recipes = dict(
    _delete_=True,
    **{
        'baseline': dict(config='configs/demo/faster-rcnn_mobilenetv2_fpn.py'),
        'tau-1': dict(config=distilled, options={tau: 1.0}),
        'kl-mse': dict(config=distilled),
        'tau-4': dict(config=distilled, options={tau: 4.0}),
        'tau-8': dict(config=distilled, options={tau: 8.0}),
    },
)
