# One Faster R-CNN pair distilled by one published method after the other on drawn pictures: what changes
# is `losses` alone. The demo's teacher, and a MobileNetV2 student.
# Weights are the published ones of Faster R-CNN (configs/methods/ says where they stand; CWD's in mmrazor
# 1.0's cwd_fpn_frcnn_r101_frcnn_r50_1x_coco.py) and were not tuned for this pair. Where a method adds up
# squares over a map instead of taking their mean, its weight is multiplied by how many fewer values a map
# has here.
drawn_scenes = dict(train=800, val=200, seed=0)

teacher = dict(config='configs/demo/faster-rcnn_r18_fpn.py', seed=0)
seeds = (0, 1, 2)

distilled = 'configs/demo/faster-rcnn_r18_to_mobilenetv2.py'
levels = 4  # P2 to P5, added up by the methods, while here the mean is taken
fewer_places = 1333 * 800 / (160 * 160)
fewer_channels = 256 / 64


convolution = dict(type='ConvConnector', in_channels=[32] * levels, out_channels=64)


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


def on_classes(type, weight=1.0, **others):
    """A loss on the RoI heads' class scores."""
    classifier = 'roi_head.bbox_head.fc_cls'
    align = dict(type='RoIClassAlignment')
    return dict(
        type=type, student=classifier, teacher=classifier, align=align, loss_weight=weight, **others
    )


def instead(**losses):
    """The distillation of the two with other losses."""
    options = {'model.losses.loss_kd_cls': None, 'model.losses.loss_kd_bbox': None}
    options.update({f'model.losses.loss_kd_{name}': loss for name, loss in losses.items()})
    return dict(config=distilled, options=options)


generation = dict(
    type='MaskedGenerationConnector',
    in_channels=32,
    out_channels=64,
    levels=levels,
    mask_ratio=0.45,
)
attention = dict(
    alpha=5e-5 * fewer_channels,
    beta=2.5e-5 * fewer_channels,
    gamma=5e-5 * fewer_places,
    align=dict(type='ForegroundFeatureAlignment'),
)
context = dict(type='GlobalContextConnector', channels=64, levels=levels)
regression = dict(
    type='BoundedRegression',
    student='roi_head.bbox_head.fc_reg',
    teacher='roi_head.bbox_head.fc_reg',
    align=dict(type='RoIBoxAlignment', select='labels'),
    loss_weight=0.5,
)

recipes = {
    'baseline': dict(config='configs/demo/faster-rcnn_mobilenetv2_fpn.py'),
    'kl-mse': dict(config=distilled),
    'cwd': instead(neck=on_neck('CWD', 10.0)),
    'pkd': instead(neck=on_neck('PKD', 6.0)),
    'fgd': instead(
        focal=on_neck('FGD', 1.0, **attention),
        overall=on_neck(
            'MSE',
            5e-7 * fewer_places * fewer_channels,
            [convolution, context],
            teacher_connector=context,
            reduction='sum',
        ),
    ),
    'mgd': instead(
        neck=on_neck('MSE', 5e-7 * fewer_places * fewer_channels, generation, reduction='sum')
    ),
    'dist': instead(cls=on_classes('DIST')),
    'dkd': instead(cls=on_classes('DKD', alpha=1.0, beta=0.25)),
    'chen': instead(
        cls=on_classes('WeightedCrossEntropy', background_weight=1.5),
        bbox=regression,
        hint=on_neck('MSE', 0.5 / levels),
    ),
}
