# A negative result, kept: the class token of DINO ViT-B/16 repeated over height and width in place of a
# feature map. It says what an image shows, but not where; docs/recipes/results.md shows how little is left.
# All but the map is as in faster-rcnn_dino-b-patch_voc2012.py, the remedy.
_base_ = './faster-rcnn_dino-b-patch_voc2012.py'

model = dict(backbone=dict(output_class_token=True), neck=dict(type='ClassTokenPyramid'))
