# What does the gain depend on: how many pictures there are. The pair and the losses of `make demo`, with
# all of the 800 drawn pictures, with 240 and with 80, in about as many steps.
_base_ = './methods.py'

demo = 'configs/demo/faster-rcnn_mobilenetv2_fpn.py'
distilled = 'configs/demo/faster-rcnn_r18_to_mobilenetv2.py'


def first(images):
    epochs = round(5 * 800 / images)  # the demo's are 5 of 800
    return {
        'train_dataloader.dataset.indices': images,
        'train_cfg.max_epochs': epochs,
        'train_cfg.val_interval': epochs,
        'default_hooks.checkpoint.interval': epochs,
        'param_scheduler.1.end': epochs,
        'param_scheduler.1.T_max': epochs,
    }


recipes = dict(
    _delete_=True,
    **{
        'baseline': dict(config=demo),
        'kl-mse': dict(config=distilled),
        'baseline-240': dict(config=demo, options=first(240), against='baseline-240'),
        'kl-mse-240': dict(config=distilled, options=first(240), against='baseline-240'),
        'baseline-80': dict(config=demo, options=first(80), against='baseline-80'),
        'kl-mse-80': dict(config=distilled, options=first(80), against='baseline-80'),
    },
)
