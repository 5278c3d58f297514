# DETR R50 teaches DETR R18 on COCO, all 80 classes: logit distillation of queries that are matched by their
# predictions. The first config of _base_ trains the same student without distillation.
_base_ = ['./students/detr_r18_150e_coco.py', './_base_/distillation.py']

model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmdet::detr/detr_r50_8xb2-150e_coco.py',
        # box AP 39.9 on val2017 (MMDetection's configs/detr/metafile.yml)
        checkpoint='https://download.openmmlab.com/mmdetection/v3.0/detr/detr_r50_8xb2-150e_coco/'
        'detr_r50_8xb2-150e_coco_20221023_153551-436d03e8.pth',
    ),
    # These parts have the teacher's shapes and start with its weights. Backbone and projection do not.
    init_student=dict(from_teacher=['encoder', 'decoder', 'query_embedding', 'bbox_head']),
    losses=dict(
        loss_kd_cls=dict(
            type='KLDivergence',
            # Hinton et al. 2015 (arXiv 1503.02531), sec. 3: for small students, temperatures of 2.5 to 4
            # were better than higher and lower ones. A little lower here: 80 classes and no-object are
            # already far apart.
            tau=2.0,
            # DETR's own class loss has weight 1 in each of six decoder layers. This loss is the mean over
            # the layers: 1 * 6 = 6.
            loss_weight=6.0,
            student='bbox_head',
            teacher='bbox_head',
            align=dict(type='HungarianQueryAlignment', of='class'),
        ),
        loss_kd_bbox=dict(
            type='L1',
            # DETR's own L1 weight (Carion et al. 2020, sec. A.4) is 5, for the sum over four coordinates in
            # each of six layers. This loss is the mean over both: 5 * 4 * 6 = 120.
            loss_weight=120.0,
            student='bbox_head',
            teacher='bbox_head',
            align=dict(type='HungarianQueryAlignment', of='box'),
        ),
        loss_kd_iou=dict(
            type='GIoU',
            loss_weight=12.0,  # DETR's own GIoU weight is 2, in each of six layers: 2 * 6 = 12
            student='bbox_head',
            teacher='bbox_head',
            align=dict(type='HungarianQueryAlignment', of='box', box_format='xyxy'),
        ),
    ),
)

# COCO's mAP and F1.
val_evaluator = dict(type='CocoF1Metric')
test_evaluator = dict(type='CocoF1Metric')
