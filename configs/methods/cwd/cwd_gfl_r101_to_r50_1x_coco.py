# CWD (Shu et al., ICCV 2021, arXiv 2011.13256) on the class scores: GFL R101 teaches R50. Values:
# mmrazor 0.3.1, configs/distill/cwd/cwd_cls_head_gfl_r101_fpn_gfl_r50_fpn_1x_coco.py. The published result
# is for this file; mmrazor 1.0 has a different loss of the same name, without a result.
_base_ = ['mmdet::gfl/gfl_r50_fpn_1x_coco.py', '../../_base_/distillation.py']

model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/gfl/gfl_r101_fpn_mstrain_2x_coco/gfl_r101_fpn_mstrain_2x_coco_20200629_200126-dd12f847.pth',
    ),
    losses=dict(
        loss_kd_cls=dict(
            type='CWD',
            tau=1.0,
            student='bbox_head.gfl_cls',
            teacher='bbox_head.gfl_cls',
            # mmrazor counts padding too: models/losses/cwd.py.
            align=dict(type='FeatureAlignment', count_padding=True),
            # 5 per level: mmrazor sums over the five levels, mmkd takes the mean.
            loss_weight=5.0 * 5,
        ),
    ),
)
