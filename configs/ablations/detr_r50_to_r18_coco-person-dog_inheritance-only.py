# The student starts with the teacher's weights and trains on labels alone.
_base_ = '../detr_r50_to_r18_coco-person-dog.py'

model = dict(losses=dict(loss_kd_cls=None, loss_kd_bbox=None, loss_kd_iou=None))
