# The recipe of Negi and Shah, Knowledge Distillation for Object Detection: mean squared error on boxes and KL
# divergence on classes of the RoI heads. The first base is the student's config; trained alone, it is the
# baseline.
_base_ = ['./student.py', '../../../configs/_base_/distillation.py']

model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        config='{{fileDirname}}/teacher.py',
        checkpoint='{{$MMKD_WEIGHTS:weights}}/faster-rcnn_mobilenetv2-fpn128_voc2012-animals.pth',
        # A cached teacher needs this: it has no outputs for the student's proposals.
        proposals='teacher',
        num_proposals=32,  # as in benchmarks/studies/cached.py
    ),
    losses=dict(
        loss_kd_cls=dict(
            type='KLDivergence',
            tau=2.0,  # as in configs/demo
            loss_weight=0.3,  # the best of 0.3, 1 and 3 on held-out images (tuning.jsonl)
            student='roi_head.bbox_head.fc_cls',
            teacher='roi_head.bbox_head.fc_cls',
            align=dict(type='RoIClassAlignment'),
        ),
        loss_kd_bbox=dict(
            type='MSE',
            loss_weight=0.3,  # chosen with the weight of loss_kd_cls
            student='roi_head.bbox_head.fc_reg',
            teacher='roi_head.bbox_head.fc_reg',
            align=dict(type='RoIBoxAlignment', select='teacher'),
        ),
    ),
)
