# Pascal VOC 2012: trained on `train` (5,717 images), evaluated on `val` (5,823 images) with COCO's metric,
# mAP at IoU 0.5:0.95 with AP50 and AP75. Plain MMDetection: this file does not need mmkd.
#
# Inherited from MMDetection's own VOC config: image loading, Resize to (1000, 600) with the aspect
# ratio kept, RandomFlip 0.5, the samplers. Changed: VOC 2012 only, each image once per epoch, COCO's metric.
_base_ = 'mmdet::_base_/datasets/voc0712.py'

# The folder that contains VOC2012/. For another folder set the environment variable MMKD_VOC, or
# --cfg-options {train,val,test}_dataloader.dataset.data_root=...
data_root = '{{$MMKD_VOC:data/VOCdevkit/}}'

# Objects marked `difficult` get ignore_flag=1. In training they become `ignored_instances`. Faster R-CNN's
# assigners do not read these (their ignore_iof_thr is -1): the objects are not targets, and proposals on
# them count as background. In evaluation they become COCO's `iscrowd`: a missed one is no false negative,
# a detected one no false positive.
train_dataloader = dict(
    batch_size=8,  # for one GPU; the learning rate is scaled with it, see schedule_10e.py
    num_workers=4,
    dataset=dict(
        _delete_=True,  # removes the RepeatDataset over VOC 2007 and 2012
        type='VOCDataset',
        data_root=data_root,
        ann_file='VOC2012/ImageSets/Main/train.txt',
        data_prefix=dict(sub_data_root='VOC2012/'),
        # As voc0712.py, but without bbox_min_size=32: it ignores all smaller objects in training, and
        # COCO's metric counts them.
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
        # CocoMetric reads the annotations from `instances`: it has no annotation file here.
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

# ann_file=None: CocoMetric converts the annotations of the XML files to COCO format.
val_evaluator = dict(_delete_=True, type='CocoMetric', ann_file=None, metric='bbox')
test_evaluator = val_evaluator
