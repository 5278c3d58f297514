# Distils the last decoder layer only, instead of all six.
_base_ = '../detr_r50_to_r18_coco-person-dog.py'

last = dict(align=dict(layers='last'))
model = dict(losses=dict(loss_kd_cls=last, loss_kd_bbox=last, loss_kd_iou=last))
