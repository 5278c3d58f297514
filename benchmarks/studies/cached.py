# Does a student learn as much from the stored outputs of a teacher as from the live teacher? Pairs of recipes
# differ in nothing but that. The demo's teacher and a MobileNetV2 student. Images are flipped at random, so
# the stored boxes, scores and maps must be transformed to the flipped view.
drawn_scenes = dict(train=800, val=200, seed=0)

teacher = dict(config='configs/demo/faster-rcnn_r18_fpn.py', seed=0)
seeds = (0, 1, 2)

distilled = 'configs/demo/faster-rcnn_r18_to_mobilenetv2.py'
# Live and cached teachers both support the teacher's own proposals. A cache has no outputs for the student's.
proposals = {
    'model.teacher.proposals': 'teacher',
    'model.teacher.num_proposals': 32,
    'model.losses.loss_kd_bbox.align.select': 'teacher',
}
# As recipe `cwd` of methods.py.
maps = {
    'model.losses.loss_kd_cls': None,
    'model.losses.loss_kd_bbox': None,
    'model.losses.loss_kd_neck': dict(
        type='CWD',
        student='neck',
        teacher='neck',
        connector=dict(type='ConvConnector', in_channels=[32] * 4, out_channels=64),
        loss_weight=10.0 * 4,
    ),
}

recipes = {
    'baseline': dict(config='configs/demo/faster-rcnn_mobilenetv2_fpn.py'),
    'proposals': dict(config=distilled, options=proposals),
    'proposals-cached': dict(config=distilled, options=proposals, cached=True),
    'maps': dict(config=distilled, options=maps),
    'maps-cached': dict(config=distilled, options=maps, cached=True),
}
