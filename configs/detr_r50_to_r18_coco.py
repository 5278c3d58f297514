# DETR R50 teaches DETR R18 on COCO, all 80 classes: logit distillation, queries matched by what they
# predict. Without distillation the same student is trained by the first line of _base_ alone.
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
    # All but the backbone and the projection has the teacher's shapes and starts with its weights.
    init_student=dict(from_teacher=['encoder', 'decoder', 'query_embedding', 'bbox_head']),
    losses=dict(
        loss_kd_cls=dict(
            type='KLDivergence',
            # Hinton et al. 2015 (arXiv 1503.02531), sec. 3: with small students, temperatures of
            # 2.5 to 4 beat higher and lower ones; 80 classes and no-object are far apart already.
            tau=2.0,
            # As DETR's own class loss, 1 in each of six layers; this is for their mean.
            loss_weight=6.0,
            student='bbox_head',
            teacher='bbox_head',
            align=dict(type='HungarianQueryAlignment', of='class'),
        ),
        loss_kd_bbox=dict(
            type='L1',
            # DETR's own (Carion et al. 2020, sec. A.4) is 5, for the sum of four coordinates in each of six
            # layers; this is for the mean.
            loss_weight=120.0,
            student='bbox_head',
            teacher='bbox_head',
            align=dict(type='HungarianQueryAlignment', of='box'),
        ),
        loss_kd_iou=dict(
            type='GIoU',
            loss_weight=12.0,  # DETR's own 2, likewise
            student='bbox_head',
            teacher='bbox_head',
            align=dict(type='HungarianQueryAlignment', of='box', box_format='xyxy'),
        ),
    ),
)

# Checks the pair before the first iteration, and keeps connectors in checkpoints.

# COCO's mAP, and F1 beside it.
val_evaluator = dict(type='CocoF1Metric')
test_evaluator = dict(type='CocoF1Metric')
