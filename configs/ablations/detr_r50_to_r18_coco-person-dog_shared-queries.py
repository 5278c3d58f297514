# Both decoders answer the same queries, the teacher's 100 and as many random ones (KD-DETR, arXiv
# 2211.08071), in place of matching.
_base_ = '../detr_r50_to_r18_coco-person-dog.py'

shared = dict(align=dict(type='SharedQueryAlignment'))
model = dict(losses=dict(loss_kd_cls=shared, loss_kd_bbox=shared, loss_kd_iou=shared))
