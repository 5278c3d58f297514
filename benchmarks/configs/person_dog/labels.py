# The baseline: the student starts with the teacher's backbone and trains on labels alone.
_base_ = ['./student.py', '../../../configs/_base_/distillation.py']

model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmdet::yolox/yolox_nano_8xb8-300e_coco.py',
        checkpoint='{{$MMKD_WEIGHTS:weights}}/yolox_nano_coco_mmdet.pth',
    ),
    init_student=dict(from_teacher=['backbone']),
)
