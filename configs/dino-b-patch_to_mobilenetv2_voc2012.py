# Faster R-CNN on the patch tokens of DINO ViT-B/16 (106 M parameters) teaches Faster R-CNN MobileNetV2-FPN
# (19.5 M). The losses are inherited; only the teacher differs.
_base_ = './faster-rcnn_r50_to_mobilenetv2_voc2012.py'

model = dict(
    teacher=dict(
        config='{{fileDirname}}/teachers/faster-rcnn_dino-b-patch_voc2012.py',
        # Written by training the teacher's config. Relative to the current working directory.
        checkpoint='work_dirs/faster-rcnn_dino-b-patch_voc2012/epoch_10.pth',
    ),
)
