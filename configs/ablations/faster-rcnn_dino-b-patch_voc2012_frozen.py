# The transformer keeps DINO's weights; only neck and heads are trained.
_base_ = '../teachers/faster-rcnn_dino-b-patch_voc2012.py'

model = dict(backbone=dict(frozen_stages=12))
