# The GIoU of decoded boxes replaces the squared difference of box deltas.
_base_ = '../faster-rcnn_r50_to_mobilenetv2_voc2012.py'

model = dict(losses=dict(loss_kd_bbox=dict(type='GIoU', align=dict(coordinates='box'))))
