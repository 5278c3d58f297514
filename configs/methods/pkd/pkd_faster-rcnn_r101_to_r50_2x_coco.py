# PKD (Cao et al., NeurIPS 2022, arXiv 2207.02039): Faster R-CNN R101 teaches R50.
# Values: mmrazor 1.0, configs/distill/mmdet/pkd/pkd_fpn_faster-rcnn_r101_faster-rcnn_r50_2x_coco.py.
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
        loss_kd_neck=dict(
            type='PKD',
            # P2 to P5: the first four of the neck's five levels.
            student='neck.fpn_convs.*.conv',
            teacher='neck.fpn_convs.*.conv',
            # mmrazor counts padding too: models/losses/pkd_loss.py.
            align=dict(type='FeatureAlignment', count_padding=True),
            # 6 per level: mmrazor sums over the four levels, mmkd takes the mean.
            loss_weight=6.0 * 4,
        ),
    ),
)
