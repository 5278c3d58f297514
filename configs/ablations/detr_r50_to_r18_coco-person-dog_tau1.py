# Temperature 1 instead of 2.
_base_ = '../detr_r50_to_r18_coco-person-dog.py'

model = dict(losses=dict(loss_kd_cls=dict(tau=1.0)))
