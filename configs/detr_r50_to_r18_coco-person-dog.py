# DETR R50, trained on COCO's 80 classes, teaches DETR R18 two of them, person and dog, in 10 epochs.
# The teacher's probability of the other 78 classes is added to the student's no-object.
# The first config of _base_ trains the same student without distillation.
_base_ = ['./students/detr_r18_10e_coco-person-dog.py', './_base_/distillation.py']

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
    # Without the teacher's weights a DETR student learns almost nothing in 10 epochs: DETR is trained for
    # 150 to 500 (Carion et al. 2020, sec. 4). The classifier copies the rows of person, dog and no-object.
    init_student=dict(from_teacher=['encoder', 'decoder', 'query_embedding', 'bbox_head']),
    losses=dict(
        loss_kd_cls=dict(
            type='KLDivergence',
            tau=2.0,  # detr_r50_to_r18_coco.py explains tau and the three weights
            loss_weight=6.0,
            student='bbox_head',
            teacher='bbox_head',
            align=dict(type='HungarianQueryAlignment', of='class'),
        ),
        loss_kd_bbox=dict(
            type='L1',
            loss_weight=120.0,
            student='bbox_head',
            teacher='bbox_head',
            align=dict(type='HungarianQueryAlignment', of='box'),
        ),
        loss_kd_iou=dict(
            type='GIoU',
            loss_weight=12.0,
            student='bbox_head',
            teacher='bbox_head',
            align=dict(type='HungarianQueryAlignment', of='box', box_format='xyxy'),
        ),
    ),
)

val_evaluator = dict(type='CocoF1Metric')
test_evaluator = dict(type='CocoF1Metric')
