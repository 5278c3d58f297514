# Effect on the gain: the number of training images. `kl-mse` of methods.py with all 800 synthetic images,
# with the first 240 and with the first 80, for about the same number of steps.
_base_ = './methods.py'

demo = 'configs/demo/faster-rcnn_mobilenetv2_fpn.py'
distilled = 'configs/demo/faster-rcnn_r18_to_mobilenetv2.py'


def with_images(images):
    """Options that train on the first ``images`` images, for about as many steps as 5 epochs of 800."""
    epochs = round(5 * 800 / images)
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
        'baseline-240': dict(config=demo, options=with_images(240), against='baseline-240'),
        'kl-mse-240': dict(config=distilled, options=with_images(240), against='baseline-240'),
        'baseline-80': dict(config=demo, options=with_images(80), against='baseline-80'),
        'kl-mse-80': dict(config=distilled, options=with_images(80), against='baseline-80'),
    },
)
