# Temperature 4: the upper end of the range that Hinton et al. 2015, sec. 3, found good for small students.
_base_ = '../faster-rcnn_r50_to_mobilenetv2_voc2012.py'

model = dict(losses=dict(loss_kd_cls=dict(tau=4.0)))
