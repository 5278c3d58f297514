# DKD (Zhao et al., CVPR 2022, arXiv 2203.08679): Faster R-CNN R101 teaches R50. Values:
# github.com/megvii-research/mdistiller, detection/model/config.py. DKD uses a Detectron2 pair, trained
# for 180,000 iterations of 8 images; this pair is the closest one in mmdet.
_base_ = ['mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py', '../../_base_/distillation.py']

model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmdet::faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/faster_rcnn_r101_fpn_2x_coco/faster_rcnn_r101_fpn_2x_coco_bbox_mAP-0.398_20200504_210455-1d2dac9c.pth',
    ),
    losses=dict(
        loss_kd_cls=dict(
            type='DKD',
            alpha=1.0,
            beta=0.25,
            tau=1.0,
            student='roi_head.bbox_head.fc_cls',
            teacher='roi_head.bbox_head.fc_cls',
            align=dict(type='RoIClassAlignment'),
            loss_weight=1.0,
        ),
    ),
)
