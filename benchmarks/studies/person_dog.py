# From 80 classes to two: YOLOX-nano, trained on COCO, teaches a smaller detector of persons and dogs, on
# photographs that show them, with and without labels.
# The loss weights are those of YOLOX's own losses and were not searched.
teacher = dict(
    # The teacher is evaluated as this detector: the same, with the scores of the two classes only.
    config='benchmarks/configs/person_dog/yolox-nano.py',
    whole='mmdet::yolox/yolox_nano_8xb8-300e_coco.py',
    checkpoint='{{$MMKD_WEIGHTS:weights}}/yolox_nano_coco_mmdet.pth',
    sha256='861b8a7e8b4b41950e99a033d698dd76446b4677988dd8235db3806de5773672',
)
seeds = (0, 1, 2, 3, 4, 5, 6, 7)

distilled = 'benchmarks/configs/person_dog/distilled.py'
recipes = {
    'baseline': dict(config='benchmarks/configs/person_dog/labels.py'),
    'distilled': dict(config=distilled),
    'unlabelled': dict(config=distilled, options={'model.task_losses': False}),
}
