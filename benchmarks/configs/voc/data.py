# Data and schedule of the studies on photographs: the images of Pascal VOC 2012 that show animals
# (benchmarks/README.md lists them), six classes, 320 px. They are resized to 224 px, so a training run takes
# minutes on two cores. Plain MMDetection.
_base_ = 'mmdet::_base_/default_runtime.py'

dataset_type = 'CocoDataset'
# The folder that contains VOC2012/, with annotations in COCO format.
data_root = '{{$MMKD_VOC:data/VOCdevkit/}}'
# The classes with enough objects: 340 to 770 in the training images.
metainfo = dict(classes=('cat', 'cow', 'dog', 'horse', 'person', 'sheep'))
size = (224, 224)  # the longest side; 1000 in mmdet's VOC configs, smaller here to save time

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=size, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),  # as in mmdet's configs for VOC
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=size, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    batch_size=8,  # as configs/_base_/voc2012.py
    num_workers=0,  # a worker process would occupy a core
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        ann_file='VOC2012/annotations/instances_train.json',
        data_prefix=dict(img='VOC2012/JPEGImages/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),  # mmdet's values
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        ann_file='VOC2012/annotations/instances_val.json',
        data_prefix=dict(img='VOC2012/JPEGImages/'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type='CocoMetric',
    ann_file=data_root + 'VOC2012/annotations/instances_val.json',
    metric='bbox',
    format_only=False,
)
test_evaluator = val_evaluator

# 4 epochs are about 800 steps; mmdet's VOC config has about 16,500 steps of 2 images per epoch.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=4, val_interval=4)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [
    # Shorter than mmdet's 500 steps, because the training run is shorter.
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=100),
    # Cosine decay over the whole run instead of mmdet's decays after 2/3 and 11/12 of twelve epochs.
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=4, convert_to_iter_based=True),
]
optim_wrapper = dict(
    type='OptimWrapper',
    # lr: the best of 0.01, 0.02 and 0.03 for labels alone, on held-out images (tuning.jsonl). mmdet's VOC
    # config uses 0.01 for 16 images.
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0001),
    # Twice the gradient norm with labels alone. Too large a distillation weight once stopped a training run
    # (tuning.jsonl).
    clip_grad=dict(max_norm=10, norm_type=2),
)
default_hooks = dict(
    checkpoint=dict(interval=4, max_keep_ckpts=1, save_optimizer=False),
    logger=dict(interval=50),
)
