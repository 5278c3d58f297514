# RoI losses and RPN objectness with a cached teacher: its outputs are read from disk, and no teacher is in
# memory. First run `python -m mmkd cache_teacher` with this config (docs/how_to/cache.md).
_base_ = './faster-rcnn_r50_to_mobilenetv2_voc2012_rpn.py'

model = dict(
    # The teacher's top 16 proposals per image, in addition to the student's own 512. More would cost too much
    # time per step.
    teacher=dict(cache='work_dirs/cache/r50_voc2012', proposals='teacher', num_proposals=16),
    losses=dict(loss_kd_bbox=dict(align=dict(select='teacher'))),
)
