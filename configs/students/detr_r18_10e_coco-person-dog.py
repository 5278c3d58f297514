# The student for two classes: DETR with a ResNet-18 backbone for `person` and `dog`, 10 epochs. Plain
# MMDetection. Trained alone, this config is the baseline of the distillation.
_base_ = './detr_r18_150e_coco.py'

# Keep the order of COCO's category list: MMDetection numbers the labels by that list, not by this tuple.
metainfo = dict(classes=('person', 'dog'), palette=[(220, 20, 60), (0, 82, 0)])

model = dict(bbox_head=dict(num_classes=2))

# Training uses the images that show one of the two classes (MMDetection's own filter_empty_gt).
# Validation uses all images, so false positives count. To train on images without the two classes too:
#   all of them   --cfg-options train_dataloader.dataset.filter_cfg.filter_empty_gt=False
#   some of them  ablations/detr_r50_to_r18_coco-person-dog_empty-images.py
train_dataloader = dict(dataset=dict(metainfo=metainfo))
val_dataloader = dict(dataset=dict(metainfo=metainfo))
test_dataloader = val_dataloader

max_epochs = 10
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    # detr_r50_8xb2-150e_coco.py: decay after two thirds, 100 of 150 epochs.
    dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[7], gamma=0.1)
]
