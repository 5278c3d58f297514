# Data, schedule and runtime of the demo's three training runs.
# `python tools/demo.py` generates the images (tools/_synthetic_scenes.py); nothing is downloaded.
# "tuned for the demo": chosen for the demo's short run time, on the images of `--seed 1`. The demo
# uses other images, so its scores are not measured on images that settings were chosen on.
_base_ = 'mmdet::_base_/default_runtime.py'

dataset_type = 'CocoDataset'
data_root = 'work_dirs/demo/data/'
metainfo = dict(
    classes=(
        'plain disc',
        'striped disc',
        'plain box',
        'striped box',
        'plain star',
        'striped star',
    ),
    palette=[
        (230, 97, 1),
        (253, 184, 99),
        (44, 123, 182),
        (116, 196, 218),
        (178, 24, 102),
        (240, 128, 190),
    ],
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(160, 160), keep_ratio=True),  # the size of the images
    dict(type='RandomFlip', prob=0.5),  # as in mmdet's configs for COCO and VOC
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(160, 160), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
# No worker processes: reading an image of this size takes 1 ms, and a worker would occupy a core.
train_dataloader = dict(
    batch_size=4,  # tuned for the demo: more steps in the same time
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/train.json',
        data_prefix=dict(img='train/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    persistent_workers=False,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/val.json',
        data_prefix=dict(img='val/'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='CocoMetric', ann_file=data_root + 'annotations/val.json', metric='bbox')
test_evaluator = val_evaluator

max_epochs = 5  # tuned for the demo
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=2)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(
        type='SGD',
        lr=0.02,  # tuned for the demo; mmdet's schedule_1x.py uses it for 16 images per step
        momentum=0.9,  # schedule_1x.py
        weight_decay=0.0001,  # schedule_1x.py
    ),
    clip_grad=dict(max_norm=10),  # tuned for the demo: gradients have outliers in the first steps
)
param_scheduler = [
    # tuned for the demo: as schedule_1x.py, but shorter and with cosine decay
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        convert_to_iter_based=True,
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
    ),
]

default_hooks = dict(
    logger=dict(type='LoggerHook', interval=10),
    # Keeps two: mmengine deletes the older checkpoint before it writes the newer one.
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2),
)
randomness = dict(seed=0)
