# Real photographs: the images of Pascal VOC 2012 that show animals, six classes, 320 px (see
# benchmarks/README.md for which they are), read at 224 px so that a training takes minutes on two cores.
# Everything the trainings of these studies share: images, sizes, schedule. Plain MMDetection.
_base_ = 'mmdet::_base_/default_runtime.py'

dataset_type = 'CocoDataset'
# The folder that holds VOC2012/, with annotations in COCO's form.
data_root = '{{$MMKD_VOC:data/VOCdevkit/}}'
# The classes with enough objects to learn, 340 to 770 in train.
metainfo = dict(classes=('cat', 'cow', 'dog', 'horse', 'person', 'sheep'))
size = (224, 224)  # the longest side; 1000 in mmdet's VOC configs, chosen for the time there is

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=size, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),  # as mmdet's configs for VOC
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
    num_workers=0,  # a worker would take a core
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        ann_file='VOC2012/annotations/instances_train.json',
        data_prefix=dict(img='VOC2012/JPEGImages/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),  # mmdet's
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

# 4 epochs are about 800 steps; mmdet's VOC config makes about 16,500 of 2 images an epoch.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=4, val_interval=4)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [
    # Shorter than mmdet's 500 steps, as the training is.
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=100),
    # One cosine over the whole training in place of mmdet's steps at 2/3 and 11/12 of twelve epochs.
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=4, convert_to_iter_based=True),
]
optim_wrapper = dict(
    type='OptimWrapper',
    # mmdet's VOC config has it for 16 images; of 0.01, 0.02 and 0.03 the best for labels alone on held-out
    # images (tuning.jsonl)
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0001),
    # Twice what labels alone give: distillation weighed too much once stopped a training (tuning.jsonl).
    clip_grad=dict(max_norm=10, norm_type=2),
)
default_hooks = dict(
    checkpoint=dict(interval=4, max_keep_ckpts=1, save_optimizer=False),
    logger=dict(interval=50),
)
