# The report's recipe: mean squared error on boxes and KL divergence on classes of the RoI heads. The
# student config is the base, and alone the baseline.
_base_ = ['./student.py', '../../../configs/_base_/distillation.py']

model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        config='{{fileDirname}}/teacher.py',
        checkpoint='{{$MMKD_WEIGHTS:weights}}/faster-rcnn_mobilenetv2-fpn128_voc2012-animals.pth',
        # So that what the teacher says can be read from a cache.
        proposals='teacher',
        num_proposals=32,  # as benchmarks/studies/cached.py
    ),
    losses=dict(
        loss_kd_cls=dict(
            type='KLDivergence',
            tau=2.0,  # as configs/demo
            loss_weight=0.3,  # of 0.3, 1 and 3 the best on held-out images (tuning.jsonl)
            student='roi_head.bbox_head.fc_cls',
            teacher='roi_head.bbox_head.fc_cls',
            align=dict(type='RoIClassAlignment'),
        ),
        loss_kd_bbox=dict(
            type='MSE',
            loss_weight=0.3,  # likewise
            student='roi_head.bbox_head.fc_reg',
            teacher='roi_head.bbox_head.fc_reg',
            align=dict(type='RoIBoxAlignment', select='teacher'),
        ),
    ),
)
