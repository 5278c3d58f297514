# The training set also has images without person or dog, a tenth as many as with them.
_base_ = '../detr_r50_to_r18_coco-person-dog.py'

train_dataloader = dict(dataset=dict(type='ClassSubsetDataset', empty_images=0.1))
