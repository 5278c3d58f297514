# Published methods on one Faster R-CNN pair and synthetic images: the demo's teacher and a MobileNetV2
# student. Recipes differ in `losses` alone. Loss weights are those published for Faster R-CNN and were not
# tuned for this pair. Sources: configs/methods/; for CWD, mmrazor 1.0's
# cwd_fpn_frcnn_r101_frcnn_r50_1x_coco.py. A method that sums squares over a map, instead of taking their
# mean, has its weight multiplied by the ratio of map sizes: published size over size here.
drawn_scenes = dict(train=800, val=200, seed=0)

teacher = dict(config='configs/demo/faster-rcnn_r18_fpn.py', seed=0)
seeds = (0, 1, 2)

distilled = 'configs/demo/faster-rcnn_r18_to_mobilenetv2.py'
levels = 4  # P2 to P5: the methods sum over levels, mmkd takes the mean
# Published positions and channels of a map, divided by those here.
fewer_places = 1333 * 800 / (160 * 160)
fewer_channels = 256 / 64


convolution = dict(type='ConvConnector', in_channels=[32] * levels, out_channels=64)


def neck_loss(type, weight, connector=None, **others):
    """A loss on the feature maps of the necks, with the published weight per level."""
    return dict(
        type=type,
        student='neck',
        teacher='neck',
        connector=connector or convolution,
        loss_weight=weight * levels,
        **others,
    )


def class_loss(type, weight=1.0, **others):
    """A loss on the class scores of the RoI heads."""
    classifier = 'roi_head.bbox_head.fc_cls'
    align = dict(type='RoIClassAlignment')
    return dict(
        type=type, student=classifier, teacher=classifier, align=align, loss_weight=weight, **others
    )


def with_losses(**losses):
    """A recipe with these losses instead of KL and MSE, by the part of their name after ``loss_kd_``."""
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
    'cwd': with_losses(neck=neck_loss('CWD', 10.0)),
    'pkd': with_losses(neck=neck_loss('PKD', 6.0)),
    'fgd': with_losses(
        focal=neck_loss('FGD', 1.0, **attention),
        overall=neck_loss(
            'MSE',
            5e-7 * fewer_places * fewer_channels,
            [convolution, context],
            teacher_connector=context,
            reduction='sum',
        ),
    ),
    'mgd': with_losses(
        neck=neck_loss('MSE', 5e-7 * fewer_places * fewer_channels, generation, reduction='sum')
    ),
    'dist': with_losses(cls=class_loss('DIST')),
    'dkd': with_losses(cls=class_loss('DKD', alpha=1.0, beta=0.25)),
    'chen': with_losses(
        cls=class_loss('WeightedCrossEntropy', background_weight=1.5),
        bbox=regression,
        hint=neck_loss('MSE', 0.5 / levels),
    ),
}
