# Half the layers: each takes weights and targets from the teacher's layer at its share of the depth.
_base_ = '../detr_r50_to_r18_coco-person-dog.py'

model = dict(student=dict(encoder=dict(num_layers=3), decoder=dict(num_layers=3)))
