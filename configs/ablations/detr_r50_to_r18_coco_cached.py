# Without a teacher in memory: its queries are read from disk, about 0.1 MB of an image for six layers.
# `python -m mmkd cache_teacher` with this config writes them first (docs/how_to/cache.md).
_base_ = '../detr_r50_to_r18_coco.py'

model = dict(teacher=dict(cache='work_dirs/cache/detr_r50_coco'))
