# Logits, and the encoder's output, weighted by its similarity to the teacher's queries (DETRDistill,
# arXiv 2211.10156).
_base_ = '../detr_r50_to_r18_coco-person-dog.py'

memory = dict(type='MSE', student='encoder', teacher='encoder', loss_weight=1.0)  # not searched
align = dict(type='QueryWeightedFeatureAlignment')
model = dict(losses=dict(loss_kd_memory=dict(memory, align=align)))
