# Pascal VOC 2012: trained on `train` (5,717 images), evaluated on `val` (5,823) as COCO does,
# mAP at IoU 0.5:0.95 with AP50 and AP75. Plain MMDetection: nothing here needs mmkd.
#
# Inherited from MMDetection's own VOC config: image loading, Resize to (1000, 600) with the aspect
# ratio kept, RandomFlip 0.5, the samplers. Changed: VOC 2012 only, once an epoch, its own metric.
_base_ = 'mmdet::_base_/datasets/voc0712.py'

# The folder that holds VOC2012/. Set the environment variable MMKD_VOC where it lies elsewhere, or
# --cfg-options {train,val,test}_dataloader.dataset.data_root=...
data_root = '{{$MMKD_VOC:data/VOCdevkit/}}'

# Objects marked `difficult` get ignore_flag=1. In training they become `ignored_instances`, which
# the assigners of Faster R-CNN do not read (their ignore_iof_thr is -1): they are no target, and
# proposals on them count as background. In evaluation they become COCO's `iscrowd`: neither missed
# when nothing finds them nor a false positive when something does.
train_dataloader = dict(
    batch_size=8,  # one GPU; the learning rate follows it, see schedule_10e.py
    num_workers=4,
    dataset=dict(
        _delete_=True,  # the RepeatDataset over VOC 2007 and 2012
        type='VOCDataset',
        data_root=data_root,
        ann_file='VOC2012/ImageSets/Main/train.txt',
        data_prefix=dict(sub_data_root='VOC2012/'),
        # As voc0712.py, but without bbox_min_size=32, which ignores every smaller object in
        # training: evaluation as COCO does counts those too.
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline={{_base_.train_pipeline}},
    ),
)

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(1000, 600), keep_ratio=True),  # voc0712.py
    dict(type='LoadAnnotations', with_bbox=True),  # after Resize: boxes stay in the image's pixels
    dict(
        type='PackDetInputs',
        # `instances` hands the annotations to CocoMetric, which has no annotation file to read.
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'instances'),
    ),
]
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file='VOC2012/ImageSets/Main/val.txt',
        data_prefix=dict(sub_data_root='VOC2012/'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

# ann_file=None: the ground truth is what the XML files say, converted to COCO form on the way.
val_evaluator = dict(_delete_=True, type='CocoMetric', ann_file=None, metric='bbox')
test_evaluator = val_evaluator
