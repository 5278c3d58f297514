# CrossKD (Wang et al., CVPR 2024, arXiv 2306.11369): RetinaNet R101 teaches R50.
# Values: github.com/jbwang1997/CrossKD, configs/crosskd/crosskd_r50_retinanet_r101_fpn_2x_coco.py.
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_2x_coco.py', '../../_base_/distillation.py']

# The normalizer of the student's own classification loss: the number of positive priors.
normalizer = dict(module='bbox_head.loss_cls', capture='input', index='avg_factor')

model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmdet::retinanet/retinanet_r101_fpn_2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r101_fpn_2x_coco/retinanet_r101_fpn_2x_coco_20200131-5560aee8.pth',
    ),
    losses=dict(
        loss_kd_cls=dict(
            type='SoftLabelBCE',
            beta=1.0,
            student=dict(module='bbox_head.cls_convs.2.conv', copy=True),
            teacher='bbox_head',
            align=dict(
                type='DenseClassAlignment',
                crossed='bbox_head.cls_convs.2.conv',
                confidence=False,
                normalizer=normalizer,
            ),
            loss_weight=1.0,
        ),
        loss_kd_bbox=dict(
            type='GIoU',
            student=dict(module='bbox_head.reg_convs.2.conv', copy=True),
            teacher='bbox_head',
            align=dict(
                type='DenseBoxAlignment',
                crossed='bbox_head.reg_convs.2.conv',
                confidence=True,
                normalizer=normalizer,
            ),
            loss_weight=1.0,
        ),
    ),
)
