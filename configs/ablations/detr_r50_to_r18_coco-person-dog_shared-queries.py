# Both decoders get the same queries, the teacher's 100 and 100 random ones (KD-DETR, arXiv 2211.08071).
# This replaces matching.
_base_ = '../detr_r50_to_r18_coco-person-dog.py'

shared = dict(align=dict(type='SharedQueryAlignment'))
model = dict(losses=dict(loss_kd_cls=shared, loss_kd_bbox=shared, loss_kd_iou=shared))
