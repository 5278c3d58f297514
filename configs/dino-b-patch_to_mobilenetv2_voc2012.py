# Faster R-CNN on the patch tokens of DINO ViT-B/16 (106 M parameters) teaches Faster R-CNN MobileNetV2-FPN
# (19.5 M). Losses as in the config it inherits; the teacher is another.
_base_ = './faster-rcnn_r50_to_mobilenetv2_voc2012.py'

model = dict(
    teacher=dict(
        config='{{fileDirname}}/teachers/faster-rcnn_dino-b-patch_voc2012.py',
        # What training that config leaves behind; relative to the folder the command runs in.
        checkpoint='work_dirs/faster-rcnn_dino-b-patch_voc2012/epoch_10.pth',
    ),
)
