# Chen et al., Learning Efficient Object Detection Models with Knowledge Distillation, NeurIPS 2017:
# Faster R-CNN R101 teaches R50. The paper's pair, VGG16 and a factorised AlexNet, is not in mmdet.
# Values: as other papers report them, since parts of the paper could not be read; unknown ones are marked.
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
            background_weight=1.5,  # w_0, as reported by others; on VOC
            tau=1.0,  # the best temperature, as reported by others
            student='roi_head.bbox_head.fc_cls',
            teacher='roi_head.bbox_head.fc_cls',
            align=dict(type='RoIClassAlignment'),
            loss_weight=1.0,  # not known; the paper weights hard targets with mu, soft ones with 1 - mu
        ),
        loss_kd_bbox=dict(
            type='BoundedRegression',
            margin=0.0,  # not known; 0 in other implementations
            student='roi_head.bbox_head.fc_reg',
            teacher='roi_head.bbox_head.fc_reg',
            align=dict(type='RoIBoxAlignment', select='labels'),
            loss_weight=0.5,  # nu, in other implementations
        ),
        loss_kd_hint=dict(
            type='MSE',
            student='neck',
            teacher='neck',
            # The paper's "adaptation" layer, used even where teacher and student have equal channels.
            connector=dict(type='ConvConnector', in_channels=256, out_channels=256),
            loss_weight=0.5,  # gamma, as reported by others; the paper's layer is not known
        ),
    ),
)
