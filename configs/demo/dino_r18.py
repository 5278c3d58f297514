# A DETR-family teacher for the synthetic images. Plain mmdet.
_base_ = './_base_/dino_small-images.py'

model = dict(
    # tuned for the demo: half the usual width
    backbone=dict(base_channels=32),
    neck=dict(in_channels=[64, 128, 256]),
)

max_epochs = 24  # tuned for the demo
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        convert_to_iter_based=True,
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
    ),
]
