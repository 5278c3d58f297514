# DETR R50, which knows COCO's 80 classes, teaches DETR R18 the two it needs, person and dog, in 10
# epochs. What the teacher gives to the other 78 counts as no-object for the student.
# Without distillation the same student is trained by the first line of _base_ alone.
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
    # Without this a DETR student learns next to nothing in 10 epochs: DETR is trained for 150 to 500
    # (Carion et al. 2020, sec. 4). Of the classifier, the rows of person, dog and no-object are taken.
    init_student=dict(from_teacher=['encoder', 'decoder', 'query_embedding', 'bbox_head']),
    losses=dict(
        loss_kd_cls=dict(
            type='KLDivergence',
            tau=2.0,  # see detr_r50_to_r18_coco.py, as for the weights below
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
