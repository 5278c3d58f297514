# Boxes only: no loss on classes.
_base_ = '../faster-rcnn_r50_to_mobilenetv2_voc2012.py'

model = dict(losses=dict(loss_kd_cls=None))
