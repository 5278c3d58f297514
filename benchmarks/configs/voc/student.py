# The student: the teacher's kind of backbone; FPN and head have half of the teacher's channels. Trained
# alone, this config is the baseline. Plain MMDetection.
_base_ = ['./teacher.py']

model = dict(
    backbone=dict(
        # Freezes the first layers, which cost most time; mmdet's ResNets freeze stem and first stage.
        frozen_stages=2,
        init_cfg=dict(
            type='Pretrained',
            # ImageNet's MobileNetV2 with mmdet's parameter names (source: benchmarks/README.md).
            checkpoint='{{$MMKD_WEIGHTS:weights}}/mobilenet_v2_imagenet_mmdet.pth',
        ),
    ),
    neck=dict(out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256),
    ),
    # Fewer proposals than mmdet's 2000 and 512, to save time.
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=300, max_per_img=150),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100)),
)
