# Classes only: no loss on boxes.
_base_ = '../faster-rcnn_r50_to_mobilenetv2_voc2012.py'

model = dict(losses=dict(loss_kd_bbox=None))
