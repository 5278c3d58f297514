# Both RoI heads evaluate the teacher's proposals; boxes count where the teacher sees foreground.
_base_ = '../faster-rcnn_r50_to_mobilenetv2_voc2012.py'

model = dict(
    teacher=dict(proposals='teacher'),
    losses=dict(loss_kd_bbox=dict(align=dict(select='teacher'))),
)
