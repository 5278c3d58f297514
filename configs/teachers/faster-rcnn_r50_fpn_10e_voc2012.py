# The teacher: Faster R-CNN with ResNet-50 and FPN (41.4 M parameters), 20 VOC classes. Plain MMDetection.
# Train this config before you distil from it.
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    '../_base_/voc2012.py',
    '../_base_/schedule_10e.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(roi_head=dict(bbox_head=dict(num_classes=20)))
