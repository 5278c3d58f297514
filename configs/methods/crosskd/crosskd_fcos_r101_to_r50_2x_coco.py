# CrossKD (Wang et al., CVPR 2024, arXiv 2306.11369): FCOS R101 teaches R50. Values:
# github.com/jbwang1997/CrossKD,
# configs/crosskd/crosskd_r50_fcos_r101-2x-ms_caffe_fpn_gn-head_2x_ms_coco.py.
# The student's maps enter the teacher's head after the second of four convolutions of each tower.
_base_ = [
    'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_ms-640-800-2x_coco.py',
    '../../_base_/distillation.py',
]

# The normalizer of the student's own box loss: the sum of centerness over positive priors.
normalizer = dict(module='bbox_head.loss_bbox', capture='input', index='avg_factor')

model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmdet::fcos/fcos_r101-caffe_fpn_gn-head_ms-640-800-2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/fcos/fcos_r101_caffe_fpn_gn-head_mstrain_640-800_2x_coco/fcos_r101_caffe_fpn_gn-head_mstrain_640-800_2x_coco-511424d6.pth',
    ),
    losses=dict(
        loss_kd_cls=dict(
            type='SoftLabelBCE',
            beta=1.0,
            student=dict(module='bbox_head.cls_convs.1.gn', copy=True),
            teacher='bbox_head',
            align=dict(
                type='DenseClassAlignment',
                crossed='bbox_head.cls_convs.1.gn',
                confidence=False,
                normalizer=normalizer,
            ),
            loss_weight=0.4,
        ),
        loss_kd_bbox=dict(
            type='IoU',
            student=dict(module='bbox_head.reg_convs.1.gn', copy=True),
            teacher='bbox_head',
            align=dict(
                type='DenseBoxAlignment',
                crossed='bbox_head.reg_convs.1.gn',
                confidence=True,
                normalizer=normalizer,
            ),
            loss_weight=0.75,
        ),
    ),
)
