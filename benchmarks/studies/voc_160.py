# The photographs and the teacher of voc.py, with a student of half the size: images of 160 px, an FPN of 32
# channels, a head of 128 channels. The cached outputs of the teacher were computed at 320 px, its own
# training size.
_base_ = './voc.py'

sizes = {'train_dataloader': 160, 'val_dataloader': 160, 'test_dataloader': 320}  # px, longest side
options = {
    f'{loader}.dataset.pipeline.{2 if loader == "train_dataloader" else 1}.scale': (side, side)
    for loader, side in sizes.items()
}
seeds = (0, 1, 2, 3, 4, 5, 6, 7)


def narrow(model):
    """Options that make the student at the config key ``model`` narrow."""
    return {
        f'{model}.neck.out_channels': 32,
        f'{model}.rpn_head.in_channels': 32,
        f'{model}.rpn_head.feat_channels': 32,
        f'{model}.roi_head.bbox_roi_extractor.out_channels': 32,
        f'{model}.roi_head.bbox_head.in_channels': 32,
        f'{model}.roi_head.bbox_head.fc_out_channels': 128,
        f'{model}.train_cfg.rcnn.sampler.num': 32,  # half of voc.py's, to save time
    }


distilled = 'benchmarks/configs/voc/distilled.py'
student = narrow('model.student')
# The best of 0.3, 1 and 3 on held-out images (tuning/voc_160_tuning.py).
report = {
    'model.losses.loss_kd_cls.loss_weight': 1.0,
    'model.losses.loss_kd_bbox.loss_weight': 1.0,
}
# The same losses with measured weights.
measured = {
    'model.losses.loss_kd_cls.loss_weight': 'auto',
    'model.losses.loss_kd_bbox.loss_weight': 'auto',
}
# Teacher and student have the same kind of backbone. The teacher's was trained further.
backbone = {'model.init_student': dict(from_teacher=['backbone'])}
# A published loss on classes instead of the KL divergence. Weights of 0.3 and 1 had equal scores on held-out
# images.
dist = {
    'model.losses.loss_kd_cls': dict(
        _delete_=True,
        type='DIST',  # Huang et al. 2022
        tau=2.0,  # as in the KL divergence that it replaces
        student='roi_head.bbox_head.fc_cls',
        teacher='roi_head.bbox_head.fc_cls',
        align=dict(type='RoIClassAlignment'),
        loss_weight=1.0,
    ),
    'model.losses.loss_kd_bbox.loss_weight': 1.0,
}
no_losses = {'model.losses.loss_kd_cls': None, 'model.losses.loss_kd_bbox': None}
recipes = dict(
    _delete_=True,
    **{
        'baseline': dict(config='benchmarks/configs/voc/student.py', options=narrow('model')),
        # The losses of Negi and Shah.
        'kl-mse': dict(config=distilled, options={**student, **report}, cached=True),
        'kl-mse-auto': dict(config=distilled, options={**student, **measured}, cached=True),
        'inherit': dict(config=distilled, options={**student, **backbone, **no_losses}),
        'inherit-kl-mse': dict(
            config=distilled, options={**student, **report, **backbone}, cached=True
        ),
        'inherit-dist': dict(
            config=distilled, options={**student, **dist, **backbone}, cached=True
        ),
    },
)
