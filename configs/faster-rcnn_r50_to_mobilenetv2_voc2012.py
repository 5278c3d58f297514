# Faster R-CNN R50-FPN teaches Faster R-CNN MobileNetV2-FPN on Pascal VOC 2012: mean squared error on
# boxes and Kullback-Leibler divergence on classes, for the student's own proposals.
# Without distillation the same student is trained by the first line of _base_ alone.
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
        # What training that config leaves behind; relative to the folder the command runs in.
        checkpoint='work_dirs/faster-rcnn_r50_fpn_10e_voc2012/epoch_10.pth',
    ),
    losses=dict(
        loss_kd_cls=dict(
            type='KLDivergence',
            # Hinton et al. 2015 (arXiv 1503.02531), sec. 3: with small students, temperatures of
            # 2.5 to 4 beat higher and lower ones; sec. 2 for the factor tau^2.
            tau=2.5,
            loss_weight=1.0,  # as the classification loss it stands beside
            student='roi_head.bbox_head.fc_cls',
            teacher='roi_head.bbox_head.fc_cls',
            align=dict(type='RoIClassAlignment'),
        ),
        loss_kd_bbox=dict(
            type='MSE',
            loss_weight=1.0,  # as the regression loss it stands beside
            student='roi_head.bbox_head.fc_reg',
            teacher='roi_head.bbox_head.fc_reg',
            # Foreground by the labels: elsewhere a box regression means nothing.
            align=dict(type='RoIBoxAlignment', select='labels'),
        ),
    ),
)

# Checks the pair before the first iteration, and keeps connectors in checkpoints.

# COCO's mAP, and F1 beside it.
val_evaluator = dict(type='CocoF1Metric')
test_evaluator = dict(type='CocoF1Metric')
