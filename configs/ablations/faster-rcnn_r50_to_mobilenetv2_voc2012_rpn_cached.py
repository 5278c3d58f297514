# RoI losses and RPN objectness without a teacher in memory: what it says is read from disk, where
# `python -m mmkd cache_teacher` with this config writes it first (docs/how_to/cache.md).
_base_ = './faster-rcnn_r50_to_mobilenetv2_voc2012_rpn.py'

model = dict(
    # The best proposals of an image, besides the student's own 512: more cost more than a step may grow.
    teacher=dict(cache='work_dirs/cache/r50_voc2012', proposals='teacher', num_proposals=16),
    losses=dict(loss_kd_bbox=dict(align=dict(select='teacher'))),
)
