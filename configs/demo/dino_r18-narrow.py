# A DETR-family student for the synthetic images. Trained alone, this config is the baseline. Plain mmdet.
# Same transformer as the teacher (dino_r18.py), a quarter of its backbone channels, a third of its epochs.
_base_ = './_base_/dino_small-images.py'

model = dict(
    backbone=dict(stem_channels=16, base_channels=8),
    neck=dict(in_channels=[16, 32, 64]),
)

max_epochs = 8
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
