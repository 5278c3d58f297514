# LD (Zheng et al., CVPR 2022, arXiv 2102.12252): GFL R101 teaches R50. Three losses:
#   loss_kd_main      box-edge distributions of positive priors ("Main LD")
#   loss_kd_valuable  box-edge distributions of priors near an object ("VLR LD")
#   loss_kd_cls       classes of positive priors ("Main KD")
# Values: github.com/HikariTJU/LD, configs/ld/ld_r50_gflv1_r101_fpn_coco_1x.py, without its feature
# imitation. mmdet's own mmdet::ld/ld_r50-gflv1-r101_fpn_1x_coco.py has the first loss only.
#
# Differences from LD's code: LD weights the first loss by the student's class scores, mmkd by the teacher's.
# LD takes the mean of the class loss per level. As in LD, the two box-edge losses are not divided by the
# number of objects, so they grow with the images per GPU; the published weights are for 2 images per GPU.
_base_ = ['mmdet::gfl/gfl_r50_fpn_1x_coco.py', '../../_base_/distillation.py']

bins = 17  # reg_max + 1; LD takes the mean of the divergence over the bins, mmkd the sum
num_classes = 80

model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/gfl/gfl_r101_fpn_mstrain_2x_coco/gfl_r101_fpn_mstrain_2x_coco_20200629_200126-dd12f847.pth',
    ),
    losses=dict(
        loss_kd_main=dict(
            type='KLDivergence',
            tau=10.0,
            student='bbox_head',
            teacher='bbox_head',
            align=dict(
                type='DenseDistributionAlignment', select='labels', confidence=True, normalizer=1
            ),
            loss_weight=0.25 / bins,  # LD and mmkd both divide the sum over four edges by 4
        ),
        loss_kd_valuable=dict(
            type='KLDivergence',
            tau=10.0,
            student='bbox_head',
            teacher='bbox_head',
            align=dict(
                type='DenseDistributionAlignment', select='valuable', confidence=False, normalizer=1
            ),
            loss_weight=0.25 / bins / 4,  # LD divides the sum over four edges by 16, mmkd by 4
        ),
        loss_kd_cls=dict(
            type='KLDivergence',
            tau=2.0,
            student='bbox_head',
            teacher='bbox_head',
            align=dict(
                type='DenseClassAlignment',
                activation='softmax',
                select='labels',
                confidence=False,
            ),
            loss_weight=10.0 / num_classes,
        ),
    ),
)
