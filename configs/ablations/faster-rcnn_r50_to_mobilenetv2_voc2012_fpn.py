# RoI losses, and FPN features. Both necks have 256 channels, so no connector is needed.
_base_ = '../faster-rcnn_r50_to_mobilenetv2_voc2012.py'

model = dict(losses=dict(loss_kd_neck=dict(type='MSE', student='neck', teacher='neck')))
