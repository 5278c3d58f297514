# The class token repeated over height and width in place of the patch tokens; all else as there.
_base_ = './faster-rcnn_vit-patch.py'

model = dict(backbone=dict(output_class_token=True), neck=dict(type='ClassTokenPyramid'))
