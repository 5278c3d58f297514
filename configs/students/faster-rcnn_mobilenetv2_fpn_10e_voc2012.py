# The student: Faster R-CNN with MobileNetV2 and FPN, 20 VOC classes. Plain MMDetection. Trained alone, this
# config is the baseline of the distillation.
#
# 19.5 M parameters, with the widths of mmdet's faster-rcnn_r50_fpn.py (FPN 256, fc 1024):
#   MobileNetV2 1.0 without its classifier             2.2 M
#   FPN: four 1x1 of 1432 -> 256, four 3x3 of 256      2.7 M
#   RPN: one 3x3 of 256, objectness and deltas         0.6 M
#   RoI head: 256 * 7 * 7 -> 1024 -> 1024 -> outputs  14.0 M
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    '../_base_/voc2012.py',
    '../_base_/schedule_10e.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='MobileNetV2',
        widen_factor=1.0,  # Sandler et al. 2018, table 2
        out_indices=(1, 2, 4, 7),  # the last layer of each stride: 4, 8, 16, 32
        act_cfg=dict(type='ReLU6'),  # Sandler et al. 2018, sec. 4
        # As faster-rcnn_r50_fpn.py: with few images per step, ImageNet's batch statistics are kept.
        norm_eval=True,
        # From mmdet's yolov3_mobilenetv2 config; mmengine downloads it. To use your own file:
        # --cfg-options model.backbone.init_cfg.checkpoint=FILE
        # (in a distillation config, model.student.backbone.init_cfg.checkpoint=FILE)
        init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://mmdet/mobilenet_v2'),
    ),
    neck=dict(in_channels=[24, 32, 96, 1280]),
    roi_head=dict(bbox_head=dict(num_classes=20)),
)
