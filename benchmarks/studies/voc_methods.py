# The photographs, teacher and student of voc.py, distilled by published methods on the pyramids' maps: what
# changes is `losses` alone.
# The weights are the published ones of Faster R-CNN (configs/methods/ says where they stand; CWD's in
# mmrazor 1.0's cwd_fpn_frcnn_r101_frcnn_r50_1x_coco.py), per value of a map as in methods.py, times one
# factor a method: what makes its gradient at backbone and neck at the first step about 0.3 of that of the
# labels, as the report's losses have it, whose weights were tuned (tuning/voc_tuning.py).
# tools/gradients.py shows it.
_base_ = './voc.py'

distilled = 'benchmarks/configs/voc/distilled.py'
levels = 5  # P2 to P6, added up by the methods, while here the mean is taken
fewer_places = 1333 * 800 / (224 * 224)
fewer_channels = 256 / 128

convolution = dict(type='ConvConnector', in_channels=[64] * levels, out_channels=128)
context = dict(type='GlobalContextConnector', channels=128, levels=levels)


def on_neck(type, weight, connector=None, **others):
    """A loss on the necks' maps."""
    return dict(
        type=type,
        student='neck',
        teacher='neck',
        connector=connector or convolution,
        loss_weight=weight * levels,
        **others,
    )


def instead(**losses):
    """The distillation of voc.py with other losses."""
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
        'cwd': instead(neck=on_neck('CWD', 10.0 * calibrated['cwd'])),
        'pkd': instead(neck=on_neck('PKD', 6.0 * calibrated['pkd'])),
        'fgd': instead(
            focal=on_neck('FGD', calibrated['fgd'], **attention),
            overall=on_neck(
                'MSE',
                calibrated['fgd'] * 5e-7 * fewer_places * fewer_channels,
                [convolution, context],
                teacher_connector=context,
                reduction='sum',
            ),
        ),
    },
)
