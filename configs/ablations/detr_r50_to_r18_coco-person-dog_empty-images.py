# A tenth as many images of neither class as of the two, so that the student sees what is none.
_base_ = '../detr_r50_to_r18_coco-person-dog.py'

train_dataloader = dict(dataset=dict(type='ClassSubsetDataset', empty_images=0.1))
