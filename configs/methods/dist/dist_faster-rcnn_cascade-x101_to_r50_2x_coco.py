# DIST (Huang et al., NeurIPS 2022, arXiv 2205.10536): a Cascade Mask R-CNN with X101 teaches a Faster
# R-CNN with R50. Values: the author's detection code, github.com/hunto/MasKD, mmrazor/ (beta, gamma and
# the weight are 1, no temperature). The first stage of the teacher's cascade classifies the student's
# proposals.
_base_ = ['mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py', '../../_base_/distillation.py']

model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmdet::cascade_rcnn/cascade-mask-rcnn_x101-64x4d_fpn_20e_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/cascade_rcnn/cascade_mask_rcnn_x101_64x4d_fpn_20e_coco/cascade_mask_rcnn_x101_64x4d_fpn_20e_coco_20200512_161033-bdb5126a.pth',
    ),
    losses=dict(
        loss_kd_cls=dict(
            type='DIST',
            beta=1.0,
            gamma=1.0,
            student='roi_head.bbox_head.fc_cls',
            teacher='roi_head.bbox_head.0.fc_cls',
            align=dict(type='RoIClassAlignment'),
            loss_weight=1.0,
        ),
    ),
)

