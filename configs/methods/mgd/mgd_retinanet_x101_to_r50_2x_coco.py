# MGD (Yang et al., ECCV 2022, arXiv 2205.01529): RetinaNet X101 teaches R50. Values:
# github.com/yzd-v/MGD,
# det/configs/distillers/mgd/retina_rx101_64x4d_distill_retina_r50_fpn_2x_coco.py. That file names a
# teacher with a 3x schedule (41.6). According to its author (yzd-v/MGD#8) the paper used this 1x teacher.
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
        loss_kd_neck=dict(
            type='MSE',
            reduction='sum',
            student='neck',
            teacher='neck',
            # MGD counts padding too: distillation/losses/mgd.py.
            align=dict(type='FeatureAlignment', count_padding=True),
            connector=dict(
                type='MaskedGenerationConnector',
                in_channels=256,
                out_channels=256,
                levels=5,
                mask_ratio=0.65,
            ),
            loss_weight=2e-5 * 5,  # alpha; MGD sums over the five levels, mmkd takes the mean
        ),
    ),
)


# As published. The student's own schedule does not clip gradients.
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
