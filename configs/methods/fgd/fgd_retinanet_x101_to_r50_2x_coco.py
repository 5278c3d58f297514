# FGD (Yang et al., CVPR 2022, arXiv 2111.11837): RetinaNet X101 teaches R50. Values:
# github.com/yzd-v/FGD,
# configs/distillers/fgd/fgd_retina_rx101_64x4d_distill_retina_r50_fpn_2x_coco.py.
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_2x_coco.py', '../../_base_/distillation.py']

model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmdet::retinanet/retinanet_x101-64x4d_fpn_1x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_x101_64x4d_fpn_1x_coco/retinanet_x101_64x4d_fpn_1x_coco_20200130-366f5af1.pth',
    ),
    # As published: the student starts with the teacher's neck and head.
    init_student=dict(from_teacher=['neck', 'bbox_head']),
    losses=dict(
        loss_kd_focal=dict(
            type='FGD',
            alpha=1e-3,
            beta=5e-4,
            gamma=5e-4,
            tau=0.5,
            student='neck',
            teacher='neck',
            # FGD counts padding too: distillation/losses/fgd.py.
            align=dict(type='ForegroundFeatureAlignment', count_padding=True),
            loss_weight=5,  # FGD sums over the five levels, mmkd takes the mean
        ),
        loss_kd_global=dict(
            type='MSE',
            reduction='sum',
            student='neck',
            teacher='neck',
            # FGD counts padding too: distillation/losses/fgd.py.
            align=dict(type='FeatureAlignment', count_padding=True),
            connector=dict(type='GlobalContextConnector', channels=256, levels=5),
            teacher_connector=dict(type='GlobalContextConnector', channels=256, levels=5),
            loss_weight=5e-6 * 5,  # lambda, times five levels as above
        ),
    ),
)


# As published. The student's own schedule does not clip gradients.
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
