# The distillation of Negi and Shah, Knowledge Distillation for Object Detection: Faster R-CNN on ViTDet-B
# (106 M parameters) teaches Faster R-CNN MobileNetV2-FPN (19.5 M), with mean squared error on boxes and
# Kullback-Leibler divergence on classes, on the student's own proposals.
# The losses are inherited; only the teacher differs.
_base_ = './faster-rcnn_r50_to_mobilenetv2_voc2012.py'

model = dict(
    teacher=dict(
        config='{{fileDirname}}/teachers/faster-rcnn_vitdet-b_voc2012.py',
        # Written by training the teacher's config. Relative to the current working directory.
        checkpoint='work_dirs/faster-rcnn_vitdet-b_voc2012/epoch_10.pth',
    ),
)
