# The class token, repeated over height and width, replaces the patch tokens; the rest is inherited.
_base_ = './faster-rcnn_vit-patch.py'

model = dict(backbone=dict(output_class_token=True), neck=dict(type='ClassTokenPyramid'))
