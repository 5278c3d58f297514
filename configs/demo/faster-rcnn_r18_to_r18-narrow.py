# The demo's distillation. The first base is the student's config; trained alone, it is the baseline.
_base_ = ['./faster-rcnn_r18-narrow_fpn.py', '../_base_/distillation.py']

model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        config='{{fileDirname}}/faster-rcnn_r18_fpn.py',
        checkpoint='work_dirs/demo/teacher/epoch_5.pth',  # written by the demo
    ),
    losses=dict(
        # tau: Hinton et al. 2015 (arXiv 1503.02531), sec. 3, found 2.5 to 4 best for small students and ten
        # classes; a little lower here, for six classes and background. loss_weight is 1 (the default), as
        # for the student's own losses.
        loss_kd_cls=dict(type='KLDivergence', tau=2.0, align='RoIClassAlignment'),
        loss_kd_bbox=dict(type='MSE', align=dict(type='RoIBoxAlignment', select='labels')),
    ),
)

val_evaluator = dict(type='CocoF1Metric')
test_evaluator = dict(type='CocoF1Metric')
