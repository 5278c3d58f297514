# Compares ways to distil a detection transformer. A DINO teaches a smaller one, with the same transformer
# and a quarter of the backbone's channels, on synthetic images. Loss weights were tuned on other images
# (generated with seed 1), with a single run each. `neck` and `inherit-shared-neck` were not tried before
# the study.
drawn_scenes = dict(train=800, val=200, seed=0)

teacher = dict(config='configs/demo/dino_r18.py', seed=0)
seeds = (0, 1, 2)

distilled = 'configs/demo/dino_r18_to_r18-narrow.py'
shared = {
    f'model.losses.loss_kd_{name}.align.type': 'SharedQueryAlignment'
    for name in ('cls', 'bbox', 'iou')
}
no_logits = {f'model.losses.loss_kd_{name}': None for name in ('cls', 'bbox', 'iou')}
# All parts but backbone and neck. The neck has other shapes, because its input is the narrow backbone's
# output.
inherit = {
    'model.init_student': dict(
        from_teacher=[
            *('encoder', 'decoder', 'query_embedding', 'level_embed'),
            *('memory_trans_fc', 'memory_trans_norm', 'bbox_head'),
        ]
    )
}
neck = {
    'model.losses.loss_kd_neck': dict(type='MSE', student='neck', teacher='neck', loss_weight=5.0)
}

recipes = {
    'baseline': dict(config='configs/demo/dino_r18-narrow.py'),
    'hungarian': dict(config=distilled),
    'shared-queries': dict(config=distilled, options=shared),
    'neck': dict(config=distilled, options={**neck, **no_logits}),
    'inherit': dict(config=distilled, options={**inherit, **no_logits}),
    'inherit-shared-neck': dict(config=distilled, options={**inherit, **shared, **neck}),
}
