# The student: DETR with a ResNet-18 backbone, 80 COCO classes. Plain MMDetection. Trained alone, this config
# is the baseline of the distillation.
#
# Except for the backbone it is the teacher, detr_r50_8xb2-150e_coco.py: six encoder and six decoder layers
# with eight heads, 100 queries, 150 epochs. 28.9 M parameters; docs/recipes/costs.md lists them by part.
# MMDetection's own detr_r18 config has the same model and 500 epochs.
_base_ = 'mmdet::detr/detr_r50_8xb2-150e_coco.py'

model = dict(
    backbone=dict(depth=18, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18')),
    neck=dict(in_channels=[512]),
)

# Keeps two checkpoints instead of 150. One is not enough: mmengine deletes the older one before it writes the
# newer one.
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2))
