# FGD (Yang et al., CVPR 2022, arXiv 2111.11837): a Cascade Mask R-CNN with deformable X101 teaches a
# Faster R-CNN with R50. Values: github.com/yzd-v/FGD,
# configs/distillers/fgd/fgd_cascade_mask_rcnn_rx101_32x4d_distill_faster_rcnn_r50_fpn_2x_coco.py.
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
        loss_kd_focal=dict(
            type='FGD',
            alpha=5e-5,
            beta=2.5e-5,
            gamma=5e-5,
            tau=0.5,
            student='neck.fpn_convs.*.conv',
            teacher='neck.fpn_convs.*.conv',
            # FGD counts padding too: distillation/losses/fgd.py.
            align=dict(type='ForegroundFeatureAlignment', count_padding=True),
            loss_weight=4,  # FGD sums over the four levels, mmkd takes the mean
        ),
        loss_kd_global=dict(
            type='MSE',
            reduction='sum',
            student='neck.fpn_convs.*.conv',
            teacher='neck.fpn_convs.*.conv',
            # FGD counts padding too: distillation/losses/fgd.py.
            align=dict(type='FeatureAlignment', count_padding=True),
            connector=dict(type='GlobalContextConnector', channels=256, levels=4),
            teacher_connector=dict(type='GlobalContextConnector', channels=256, levels=4),
            loss_weight=5e-7 * 4,  # lambda, times four levels as above
        ),
    ),
)


# As published. The student's own schedule does not clip gradients.
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
