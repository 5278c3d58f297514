# Ablation: the transformer stays as DINO left it, and neck and heads learn.
_base_ = '../teachers/faster-rcnn_dino-b-patch_voc2012.py'

model = dict(backbone=dict(frozen_stages=12))
