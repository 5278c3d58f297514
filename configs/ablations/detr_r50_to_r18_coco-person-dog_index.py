# Queries are paired by index. This works because the student starts with the teacher's query embeddings.
_base_ = '../detr_r50_to_r18_coco-person-dog.py'

index = dict(align=dict(type='IndexQueryAlignment'))
model = dict(losses=dict(loss_kd_cls=index, loss_kd_bbox=index, loss_kd_iou=index))
