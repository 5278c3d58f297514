# One Faster R-CNN pair, distilled by one method after the other on drawn pictures: what changes is
# `losses` alone. The pair is that of the demo.
drawn_scenes = dict(train=800, val=200, seed=0)

teacher = dict(config='configs/demo/faster-rcnn_r18_fpn.py', seed=0)
seeds = (0, 1, 2)

distilled = 'configs/demo/faster-rcnn_r18_to_mobilenetv2.py'
levels = 4  # P2 to P5, as the papers' Faster R-CNN; P6 is P5 taken apart


def on_neck(type, weight, connector=None, **others):
    """A loss on the neck; papers add up levels of which here the mean is taken."""
    convolution = dict(type='ConvConnector', in_channels=[32] * 4, out_channels=64)
    neck = 'neck.fpn_convs.*.conv'
    return dict(
        type=type,
        student=neck,
        teacher=neck,
        connector=connector or convolution,
        loss_weight=weight * levels,
        **others,
    )


def on_classes(type, weight, **others):
    classifier = 'roi_head.bbox_head.fc_cls'
    align = dict(type='RoIClassAlignment')
    return dict(
        type=type, student=classifier, teacher=classifier, align=align, loss_weight=weight, **others
    )


def instead(**losses):
    """The distillation's losses replaced by these."""
    options = {'model.losses.loss_kd_cls': None, 'model.losses.loss_kd_bbox': None}
    options.update({f'model.losses.loss_kd_{name}': loss for name, loss in losses.items()})
    return dict(config=distilled, options=options)


recipes = {
    'baseline': dict(config='configs/demo/faster-rcnn_mobilenetv2_fpn.py'),
    'kl-mse': dict(config=distilled),
    'cwd': instead(neck=on_neck('CWD', 10.0)),
    'pkd': instead(neck=on_neck('PKD', 6.0)),
}
