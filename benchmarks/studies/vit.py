# The Pascal VOC 2012 rows of Negi and Shah, Knowledge Distillation for Object Detection, scaled down:
# Faster R-CNN on a plain vision transformer, with the class token repeated over all positions
# (`cls-repeat`), with the patch tokens (`patch`), and as ViTDet, the teacher of a MobileNetV2 as in the
# paper. Synthetic images, all detectors trained from random weights. `cls-repeat` and `patch` differ in the
# feature map alone.
drawn_scenes = dict(train=800, val=200, seed=0)

teacher = dict(config='configs/demo/faster-rcnn_vitdet.py', seed=0)
seeds = (0, 1, 2)

recipes = {
    'cls-repeat': dict(config='configs/demo/faster-rcnn_vit-cls-repeat.py'),
    'patch': dict(config='configs/demo/faster-rcnn_vit-patch.py'),
    'baseline': dict(config='configs/demo/faster-rcnn_mobilenetv2_fpn.py'),
    'distilled': dict(config='configs/demo/faster-rcnn_r18_to_mobilenetv2.py'),
}
