# Half the layers. Each student layer is paired with the teacher layer at the same relative depth, for initial
# weights and for targets.
_base_ = '../detr_r50_to_r18_coco-person-dog.py'

model = dict(student=dict(encoder=dict(num_layers=3), decoder=dict(num_layers=3)))
