# The demo's teacher with a MobileNetV2 student. The first base is the student's config; trained alone, it is
# the baseline.
_base_ = ['./faster-rcnn_mobilenetv2_fpn.py', '../_base_/distillation.py']

model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        config='{{fileDirname}}/faster-rcnn_r18_fpn.py',
        checkpoint='work_dirs/demo/teacher/epoch_5.pth',  # written by the demo
    ),
    losses=dict(
        loss_kd_cls=dict(
            type='KLDivergence',
            # Hinton et al. 2015 (arXiv 1503.02531), sec. 3, found 2.5 to 4 best for small students and ten
            # classes; a little lower here, for six classes and background. docs/recipes/results.md compares
            # other temperatures.
            tau=2.0,
            loss_weight=1.0,  # not searched: the weight of the student's classification loss
            student='roi_head.bbox_head.fc_cls',
            teacher='roi_head.bbox_head.fc_cls',
            align=dict(type='RoIClassAlignment'),
        ),
        loss_kd_bbox=dict(
            type='MSE',
            loss_weight=1.0,  # not searched: the weight of the student's regression loss
            student='roi_head.bbox_head.fc_reg',
            teacher='roi_head.bbox_head.fc_reg',
            align=dict(type='RoIBoxAlignment', select='labels'),
        ),
    ),
)

val_evaluator = dict(type='CocoF1Metric')
test_evaluator = dict(type='CocoF1Metric')
