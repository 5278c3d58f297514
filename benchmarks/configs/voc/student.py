# The student: half the teacher's pyramid and head on the same kind of backbone; and as it stands the
# baseline. Plain MMDetection.
_base_ = ['./teacher.py']

model = dict(
    backbone=dict(
        # Of the first layers, which cost most, ImageNet's filters stay as they are, as mmdet's ResNets
        # keep their stem and first stage.
        frozen_stages=2,
        init_cfg=dict(
            type='Pretrained',
            # ImageNet's MobileNetV2 with mmdet's names; where it comes from, benchmarks/README.md tells.
            checkpoint='{{$MMKD_WEIGHTS:weights}}/mobilenet_v2_imagenet_mmdet.pth',
        ),
    ),
    neck=dict(out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256),
    ),
    # Fewer proposals than mmdet's 2000 and 512, for the time there is.
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=300, max_per_img=150),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100)),
)
