# Faster R-CNN R50-FPN teaches Faster R-CNN MobileNetV2-FPN on Pascal VOC 2012: mean squared error on
# boxes and Kullback-Leibler divergence on classes, both on the student's own proposals.
# The first config of _base_ trains the same student without distillation.
_base_ = [
    './students/faster-rcnn_mobilenetv2_fpn_10e_voc2012.py',
    './_base_/distillation.py',
]

model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        config='{{fileDirname}}/teachers/faster-rcnn_r50_fpn_10e_voc2012.py',
        # Written by training the teacher's config. Relative to the current working directory.
        checkpoint='work_dirs/faster-rcnn_r50_fpn_10e_voc2012/epoch_10.pth',
    ),
    losses=dict(
        loss_kd_cls=dict(
            type='KLDivergence',
            # Hinton et al. 2015 (arXiv 1503.02531), sec. 3: for small students, temperatures of 2.5 to 4
            # were better than higher and lower ones. Sec. 2 explains the factor tau^2.
            tau=2.5,
            loss_weight=1.0,  # the weight of the student's classification loss
            student='roi_head.bbox_head.fc_cls',
            teacher='roi_head.bbox_head.fc_cls',
            align=dict(type='RoIClassAlignment'),
        ),
        loss_kd_bbox=dict(
            type='MSE',
            loss_weight=1.0,  # the weight of the student's regression loss
            student='roi_head.bbox_head.fc_reg',
            teacher='roi_head.bbox_head.fc_reg',
            # Only proposals that the labels assign to an object: box regression is undefined elsewhere.
            align=dict(type='RoIBoxAlignment', select='labels'),
        ),
    ),
)

# COCO's mAP and F1.
val_evaluator = dict(type='CocoF1Metric')
test_evaluator = dict(type='CocoF1Metric')
