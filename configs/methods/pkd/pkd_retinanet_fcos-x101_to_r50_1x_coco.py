# PKD (Cao et al., NeurIPS 2022, arXiv 2207.02039): an FCOS with X101 teaches a RetinaNet with R50.
# Values: mmrazor 1.0, configs/distill/mmdet/pkd/pkd_fpn_fcos_x101_retina_r50_1x_coco.py.
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', '../../_base_/distillation.py']

model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmdet::fcos/fcos_x101-64x4d_fpn_gn-head_ms-640-800-2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/fcos/fcos_x101_64x4d_fpn_gn-head_mstrain_640-800_2x_coco/fcos_x101_64x4d_fpn_gn-head_mstrain_640-800_2x_coco-ede514a8.pth',
    ),
    losses=dict(
        loss_kd_neck=dict(
            type='PKD',
            student='neck',
            teacher='neck',
            align=dict(
                type='FeatureAlignment',
                levels=(0, 1, 2, 3),  # P3 to P6: the first four of five levels
                count_padding=True,  # as mmrazor: models/losses/pkd_loss.py
            ),
            # 10 per level: mmrazor sums over the four levels, mmkd takes the mean.
            loss_weight=10.0 * 4,
        ),
    ),
)
