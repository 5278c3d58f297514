# CrossKD (Wang et al., CVPR 2024, arXiv 2306.11369): ATSS R101 teaches R50.
# Values: github.com/jbwang1997/CrossKD, configs/crosskd/crosskd_r50_atss_r101_fpn_1x_coco.py.
_base_ = ['mmdet::atss/atss_r50_fpn_1x_coco.py', '../../_base_/distillation.py']

# The normalizer of the student's own classification loss: the number of positive priors.
normalizer = dict(module='bbox_head.loss_cls', capture='input', index='avg_factor')

model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmdet::atss/atss_r101_fpn_1x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/atss/atss_r101_fpn_1x_coco/atss_r101_fpn_1x_20200825-dfcadd6f.pth',
    ),
    losses=dict(
        loss_kd_cls=dict(
            type='SoftLabelBCE',
            beta=1.0,
            student=dict(module='bbox_head.cls_convs.2.gn', copy=True),
            teacher='bbox_head',
            align=dict(
                type='DenseClassAlignment',
                crossed='bbox_head.cls_convs.2.gn',
                confidence=False,
                normalizer=normalizer,
            ),
            loss_weight=1.0,
        ),
        loss_kd_bbox=dict(
            type='GIoU',
            student=dict(module='bbox_head.reg_convs.2.gn', copy=True),
            teacher='bbox_head',
            align=dict(
                type='DenseBoxAlignment',
                crossed='bbox_head.reg_convs.2.gn',
                confidence=True,
                normalizer=normalizer,
            ),
            loss_weight=1.0,
        ),
        loss_kd_centerness=dict(
            type='KLDivergence',  # published as cross-entropy, which has the same gradient
            activation='sigmoid',
            student=dict(module='bbox_head.reg_convs.2.gn', copy=True),
            teacher='bbox_head',
            align=dict(
                type='DenseCenternessAlignment',
                crossed='bbox_head.reg_convs.2.gn',
                select='labels',
                confidence=False,
                normalizer=normalizer,
            ),
            loss_weight=1.0,
        ),
    ),
)
