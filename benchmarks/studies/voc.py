# Photographs of animals and persons from Pascal VOC 2012. The student is a Faster R-CNN with MobileNetV2
# and an FPN of 64 channels. The teacher has 128 channels and was trained longer, on larger images.
teacher = dict(
    config='benchmarks/configs/voc/teacher.py',
    checkpoint='{{$MMKD_WEIGHTS:weights}}/faster-rcnn_mobilenetv2-fpn128_voc2012-animals.pth',
    sha256='2e17a9574c9c01e50eba5e747c5f861b28e314b27f6ed8fd85f2ece2b3d9e05f',
)
seeds = (0, 1, 2)

distilled = 'benchmarks/configs/voc/distilled.py'
# Teacher and student have the same kind of backbone. The teacher's was trained further.
backbone = {'model.init_student': dict(from_teacher=['backbone'])}
no_losses = {'model.losses.loss_kd_cls': None, 'model.losses.loss_kd_bbox': None}
recipes = {
    'baseline': dict(config='benchmarks/configs/voc/student.py'),
    # The losses of Negi and Shah.
    'kl-mse': dict(config=distilled, cached=True),
    'inherit': dict(config=distilled, options={**backbone, **no_losses}),
    'inherit-kl-mse': dict(config=distilled, options=backbone, cached=True),
}
