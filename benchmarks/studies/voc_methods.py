# The photographs, teacher and student of voc.py with published methods on FPN features. Recipes differ in
# `losses` alone. Loss weights are those published for Faster R-CNN, scaled to the map size as in
# methods.py, times one factor per method. (Sources: configs/methods/; for CWD, mmrazor 1.0's
# cwd_fpn_frcnn_r101_frcnn_r50_1x_coco.py.) With the factor, the gradient at backbone and neck in the first
# step is about 0.3 of that of the labels. `kl-mse` has the same ratio; its weights were tuned
# (tuning/voc_tuning.py). tools/gradients.py prints the ratio.
_base_ = './voc.py'

distilled = 'benchmarks/configs/voc/distilled.py'
levels = 5  # P2 to P6: the methods sum over levels, mmkd takes the mean
# Published positions and channels of a map, divided by those here.
fewer_places = 1333 * 800 / (224 * 224)
fewer_channels = 256 / 128

convolution = dict(type='ConvConnector', in_channels=[64] * levels, out_channels=128)
context = dict(type='GlobalContextConnector', channels=128, levels=levels)


def neck_loss(type, weight, connector=None, **others):
    """A loss on the feature maps of the necks, with the weight per level."""
    return dict(
        type=type,
        student='neck',
        teacher='neck',
        connector=connector or convolution,
        loss_weight=weight * levels,
        **others,
    )


def with_losses(**losses):
    """A recipe with these losses instead of KL and MSE, by the part of their name after ``loss_kd_``."""
    options = {'model.losses.loss_kd_cls': None, 'model.losses.loss_kd_bbox': None}
    options.update({f'model.losses.loss_kd_{name}': loss for name, loss in losses.items()})
    return dict(config=distilled, options=options, cached=True)


calibrated = dict(cwd=0.01, pkd=0.1, fgd=0.01)
attention = dict(
    alpha=5e-5 * fewer_channels,
    beta=2.5e-5 * fewer_channels,
    gamma=5e-5 * fewer_places,
    align=dict(type='ForegroundFeatureAlignment'),
)
recipes = dict(
    _delete_=True,
    **{
        'baseline': dict(config='benchmarks/configs/voc/student.py'),
        'kl-mse': dict(config=distilled, cached=True),
        'cwd': with_losses(neck=neck_loss('CWD', 10.0 * calibrated['cwd'])),
        'pkd': with_losses(neck=neck_loss('PKD', 6.0 * calibrated['pkd'])),
        'fgd': with_losses(
            focal=neck_loss('FGD', calibrated['fgd'], **attention),
            overall=neck_loss(
                'MSE',
                calibrated['fgd'] * 5e-7 * fewer_places * fewer_channels,
                [convolution, context],
                teacher_connector=context,
                reduction='sum',
            ),
        ),
    },
)
