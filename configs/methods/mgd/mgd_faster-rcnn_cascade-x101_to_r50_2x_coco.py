# MGD (Yang et al., ECCV 2022, arXiv 2205.01529): a Cascade Mask R-CNN with deformable X101 teaches a
# Faster R-CNN with R50. Values: github.com/yzd-v/MGD,
# det/configs/distillers/mgd/cascade_mask_rcnn_rx101_32x4d_distill_faster_rcnn_r50_fpn_2x_coco.py.
_base_ = ['mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py', '../../_base_/distillation.py']

model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmdet::dcn/cascade-mask-rcnn_x101-32x4d-dconv-c3-c5_fpn_1x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/dcn/cascade_mask_rcnn_x101_32x4d_fpn_dconv_c3-c5_1x_coco/cascade_mask_rcnn_x101_32x4d_fpn_dconv_c3-c5_1x_coco-e75f90c8.pth',
    ),
    losses=dict(
        loss_kd_neck=dict(
            type='MSE',
            reduction='sum',
            student='neck.fpn_convs.*.conv',
            teacher='neck.fpn_convs.*.conv',
            # MGD counts padding too: distillation/losses/mgd.py.
            align=dict(type='FeatureAlignment', count_padding=True),
            connector=dict(
                type='MaskedGenerationConnector',
                in_channels=256,
                out_channels=256,
                levels=4,
                mask_ratio=0.45,
            ),
            loss_weight=5e-7 * 4,  # alpha; MGD sums over the four levels, mmkd takes the mean
        ),
    ),
)


# As published. The student's own schedule does not clip gradients.
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
