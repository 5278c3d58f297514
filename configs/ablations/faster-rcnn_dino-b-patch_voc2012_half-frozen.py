# The embeddings and the first six layers keep DINO's weights.
_base_ = '../teachers/faster-rcnn_dino-b-patch_voc2012.py'

model = dict(backbone=dict(frozen_stages=6))
