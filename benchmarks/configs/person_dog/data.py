# Data and schedule of the person_dog study: photographs of Pascal VOC 2012 (see ../voc/data.py) that show a
# person or a dog, at 320 px, with these two classes. Plain MMDetection.
_base_ = '../voc/data.py'

metainfo = dict(classes=('dog', 'person'))  # in the order of the annotations
size = (320, 320)  # the size of the image files; YOLOX-nano was tested at 416 px
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=size, keep_ratio=True),
    # The only one of YOLOX's augmentations: training runs are short.
    dict(type='RandomFlip', prob=0.5),
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
train_dataloader = dict(dataset=dict(metainfo=metainfo, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(metainfo=metainfo, pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(metainfo=metainfo, pipeline=test_pipeline))

train_cfg = dict(max_epochs=8, val_interval=8)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=8, convert_to_iter_based=True),
]
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    # lr: the best of 0.0007, 0.002, 0.005 and 0.01 for labels alone, on held-out images (tuning.jsonl).
    optimizer=dict(type='AdamW', lr=0.005, weight_decay=0.05),  # weight_decay: RTMDet's
    paramwise_cfg=dict(norm_decay_mult=0, bias_decay_mult=0),  # as YOLOX and RTMDet
)
default_hooks = dict(checkpoint=dict(interval=8))
