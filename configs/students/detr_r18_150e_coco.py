# The student: DETR with a ResNet-18 backbone, 80 COCO classes. Plain MMDetection: trained with this
# config it is the baseline that distillation is compared with.
#
# As the teacher, detr_r50_8xb2-150e_coco.py, but for the backbone: six encoder and six decoder layers of
# eight heads, 100 queries, its schedule of 150 epochs. 28.9 M parameters; docs/recipes/costs.md tells which
# part has how many. MMDetection's own detr_r18 config is the same model, trained for 500 epochs.
_base_ = 'mmdet::detr/detr_r50_8xb2-150e_coco.py'

model = dict(
    backbone=dict(depth=18, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18')),
    neck=dict(in_channels=[512]),
)

# Two checkpoints: the older is deleted before the newer is written, and 150 are not.
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2))
