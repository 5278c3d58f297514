# The student starts with an ImageNet backbone; its other weights are random.
_base_ = '../detr_r50_to_r18_coco-person-dog.py'

model = dict(init_student=None)
