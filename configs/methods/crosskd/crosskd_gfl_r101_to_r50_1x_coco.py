# CrossKD (Wang et al., CVPR 2024, arXiv 2306.11369): GFL R101 teaches R50.
# Values: github.com/jbwang1997/CrossKD, configs/crosskd/crosskd_r50_gflv1_r101-2x-ms_fpn_1x_coco.py.
# The student's maps enter the teacher's head after the third of four convolutions of each tower, before its
# activation.
_base_ = ['mmdet::gfl/gfl_r50_fpn_1x_coco.py', '../../_base_/distillation.py']

# The normalizer of the student's own classification loss: the number of positive priors.
normalizer = dict(module='bbox_head.loss_cls', capture='input', index='avg_factor')

model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/gfl/gfl_r101_fpn_mstrain_2x_coco/gfl_r101_fpn_mstrain_2x_coco_20200629_200126-dd12f847.pth',
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
            type='KLDivergence',
            tau=1.0,
            student=dict(module='bbox_head.reg_convs.2.gn', copy=True),
            teacher='bbox_head',
            align=dict(
                type='DenseDistributionAlignment',
                crossed='bbox_head.reg_convs.2.gn',
                confidence=True,  # the loss is divided by the sum of these weights
            ),
            loss_weight=4.0,
        ),
    ),
)
