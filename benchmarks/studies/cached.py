# Live and cached teacher, in pairs that differ in nothing else: does a student learn as much from the stored
# outputs of a teacher as from the teacher itself? The teacher of the demo and a MobileNetV2; images are
# flipped at random, so that boxes, scores and maps have to be mapped to the flipped view.
drawn_scenes = dict(train=800, val=200, seed=0)

teacher = dict(config='configs/demo/faster-rcnn_r18_fpn.py', seed=0)
seeds = (0, 1, 2)

distilled = 'configs/demo/faster-rcnn_r18_to_mobilenetv2.py'
# What both can do: the teacher's own proposals, since a cache cannot know the student's.
proposals = {
    'model.teacher.proposals': 'teacher',
    'model.teacher.num_proposals': 32,
    'model.losses.loss_kd_bbox.align.select': 'teacher',
}
# As in the study of methods.
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
