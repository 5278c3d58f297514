# A negative result: the class token of DINO ViT-B/16, repeated over height and width, is the feature map.
# The token encodes what an image shows but not where. docs/recipes/results.md has the scores of a scaled-down
# version. The fix is faster-rcnn_dino-b-patch_voc2012.py; this config changes only its feature map.
_base_ = './faster-rcnn_dino-b-patch_voc2012.py'

model = dict(backbone=dict(output_class_token=True), neck=dict(type='ClassTokenPyramid'))
