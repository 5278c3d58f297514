# A cached teacher: its queries are read from disk (about 0.1 MB per image for six layers), and no teacher is
# in memory. First run `python -m mmkd cache_teacher` with this config (docs/how_to/cache.md).
_base_ = '../detr_r50_to_r18_coco.py'

model = dict(teacher=dict(cache='work_dirs/cache/detr_r50_coco'))
