# LD (Zheng et al., CVPR 2022, arXiv 2102.12252): GFL R101 teaches R50: edges of boxes where labels
# see an object and where one is near ("Main LD" and "VLR LD"), classes where labels see one ("Main
# KD"). Values: github.com/HikariTJU/LD, configs/ld/ld_r50_gflv1_r101_fpn_coco_1x.py, without its
# feature imitation; mmdet's own mmdet::ld/ld_r50-gflv1-r101_fpn_1x_coco.py has the first of the
# three. There, weights of the first are the student's class scores and here the teacher's, and means
# over classes are taken level by level. Its losses of edges are divided by no number of objects, so
# they grow with the images a GPU sees: made for 2 of them.
_base_ = ['mmdet::gfl/gfl_r50_fpn_1x_coco.py', '../../_base_/distillation.py']

bins = 17  # reg_max + 1; the divergence is the mean over them there, here their sum
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
            loss_weight=0.25 / bins,  # the sum over four edges is divided by 4 there as here
        ),
        loss_kd_valuable=dict(
            type='KLDivergence',
            tau=10.0,
            student='bbox_head',
            teacher='bbox_head',
            align=dict(
                type='DenseDistributionAlignment', select='valuable', confidence=False, normalizer=1
            ),
            loss_weight=0.25 / bins / 4,  # divided by 16 there
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
