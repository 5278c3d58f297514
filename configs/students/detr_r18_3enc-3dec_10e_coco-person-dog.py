# The student for two classes with half the layers: three encoder and three decoder layers.
_base_ = './detr_r18_10e_coco-person-dog.py'

model = dict(encoder=dict(num_layers=3), decoder=dict(num_layers=3))
