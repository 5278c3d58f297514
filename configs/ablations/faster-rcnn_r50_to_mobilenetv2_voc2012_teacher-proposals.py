# Both RoI heads process the teacher's proposals. The box loss counts those that the teacher classifies as
# foreground.
_base_ = '../faster-rcnn_r50_to_mobilenetv2_voc2012.py'

model = dict(
    teacher=dict(proposals='teacher'),
    losses=dict(loss_kd_bbox=dict(align=dict(select='teacher'))),
)
