# The student: Faster R-CNN with MobileNetV2 and FPN, 20 VOC classes. Plain MMDetection: trained
# with this config it is the baseline that distillation is compared with.
#
# 19.5 M parameters in all, with the widths of mmdet's faster-rcnn_r50_fpn.py (FPN 256, fc 1024):
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
        out_indices=(1, 2, 4, 7),  # last layer at each of the strides 4, 8, 16, 32
        act_cfg=dict(type='ReLU6'),  # Sandler et al. 2018, sec. 4
        norm_eval=True,  # as faster-rcnn_r50_fpn.py: few images a step, ImageNet's statistics stay
        # From mmdet's yolov3_mobilenetv2 config; mmengine downloads it. For a file of your own
        # (when distilling, model.student.backbone...):
        # --cfg-options model.backbone.init_cfg.checkpoint=FILE
        init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://mmdet/mobilenet_v2'),
    ),
    neck=dict(in_channels=[24, 32, 96, 1280]),
    roi_head=dict(bbox_head=dict(num_classes=20)),
)
