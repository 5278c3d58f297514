# CWD (Shu et al., ICCV 2021, arXiv 2011.13256) on standardised feature maps: RTMDet-m teaches RTMDet-s.
# Values: MMYOLO 0.6, configs/rtmdet/distillation/kd_s_rtmdet_m_neck_300e_coco.py.
_base_ = ['mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py', '../../_base_/distillation.py']

model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmdet::rtmdet/rtmdet_m_8xb32-300e_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v3.0/rtmdet/rtmdet_m_8xb32-300e_coco/rtmdet_m_8xb32-300e_coco_20220719_112220-229f527c.pth',
    ),
    losses=dict(
        loss_kd_neck=dict(
            type='CWD',
            tau=1.0,
            # The last convolution of each level, before normalisation and activation.
            student='neck.out_convs.*.conv',
            teacher='neck.out_convs.*.conv',
            # mmrazor counts padding too: models/losses/cwd.py.
            align=dict(type='FeatureAlignment', count_padding=True),
            connector=dict(
                type='ConvConnector',
                in_channels=[128, 128, 128],
                out_channels=192,
                bias=False,
                standardize=True,
            ),
            teacher_connector=dict(type='StandardizeConnector'),
            # Off for the last 20 epochs, which train without mosaic and mixup.
            schedule=dict(end=280),
            # 1 per level: mmrazor sums over the three levels, mmkd takes the mean.
            loss_weight=1.0 * 3,
        ),
    ),
)
