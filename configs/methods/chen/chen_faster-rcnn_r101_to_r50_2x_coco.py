# Chen et al.: Learning Efficient Object Detection Models with Knowledge Distillation, NeurIPS 2017:
# Faster R-CNN R101 teaches R50. Its pair, VGG16 and a factorised AlexNet, is not mmdet's. Where the
# paper could not be read, values are those that others report of it; what they leave open is marked.
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
            type='WeightedCrossEntropy',
            background_weight=1.5,  # w_0, of which others report; on VOC
            tau=1.0,  # the best temperature, likewise
            student='roi_head.bbox_head.fc_cls',
            teacher='roi_head.bbox_head.fc_cls',
            align=dict(type='RoIClassAlignment'),
            loss_weight=1.0,  # not known: the share 1 - mu of soft in hard and soft targets
        ),
        loss_kd_bbox=dict(
            type='BoundedRegression',
            margin=0.0,  # not known; 0 in ports
            student='roi_head.bbox_head.fc_reg',
            teacher='roi_head.bbox_head.fc_reg',
            align=dict(type='RoIBoxAlignment', select='labels'),
            loss_weight=0.5,  # nu, in ports
        ),
        loss_kd_hint=dict(
            type='MSE',
            student='neck',
            teacher='neck',
            # "Adaptation" also where the channels agree.
            connector=dict(type='ConvConnector', in_channels=256, out_channels=256),
            loss_weight=0.5,  # gamma, of which others report; which layer is not known
        ),
    ),
)
