# The rows of the report on Pascal VOC 2012, scaled down: a plain vision transformer under Faster R-CNN with
# its class token repeated over space, with its patch tokens, and as ViTDet, which teaches the demo's
# MobileNetV2 as the report's did. On drawn pictures, and all from random weights: what differs
# between the first two is the map alone.
drawn_scenes = dict(train=800, val=200, seed=0)

teacher = dict(config='configs/demo/faster-rcnn_vitdet.py', seed=0)
seeds = (0, 1, 2)

recipes = {
    'cls-repeat': dict(config='configs/demo/faster-rcnn_vit-cls-repeat.py'),
    'patch': dict(config='configs/demo/faster-rcnn_vit-patch.py'),
    'baseline': dict(config='configs/demo/faster-rcnn_mobilenetv2_fpn.py'),
    'distilled': dict(config='configs/demo/faster-rcnn_r18_to_mobilenetv2.py'),
}
