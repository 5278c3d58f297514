# Faster R-CNN on a plain vision transformer. A simple feature pyramid computes FPN's five levels from the
# transformer's last feature map. RPN and RoI head are those of mmdet's faster-rcnn_r50_fpn.py: a student
# with FPN has the same strides and anchors. 20 VOC classes. Child configs choose the transformer.
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    './voc2012.py',
    './schedule_vit_10e.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmkd'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type='VisionTransformer',
        arch='base',
        drop_path_rate=0.1,  # ViTDet (arXiv 2203.16527), for ViT-B
        with_cp=True,  # our choice: activation checkpointing saves memory and computes layers twice
    ),
    neck=dict(
        _delete_=True,
        type='SimpleFeaturePyramid',
        in_channels=768,
        out_channels=256,  # ViTDet, sec. 3, and faster-rcnn_r50_fpn.py
    ),
    roi_head=dict(bbox_head=dict(num_classes=20)),
)
