# A DINO teaches a smaller one, with the same transformer on a quarter of the backbone's channels, on drawn
# pictures: what each way of distilling a detection transformer gains.
# Weights were tuned on other pictures (drawn with seed 1), a training each; `neck` and the last recipe
# were not tried before.
drawn_scenes = dict(train=800, val=200, seed=0)

teacher = dict(config='configs/demo/dino_r18.py', seed=0)
seeds = (0, 1, 2)

distilled = 'configs/demo/dino_r18_to_r18-narrow.py'
shared = {
    f'model.losses.loss_kd_{name}.align.type': 'SharedQueryAlignment'
    for name in ('cls', 'bbox', 'iou')
}
no_logits = {f'model.losses.loss_kd_{name}': None for name in ('cls', 'bbox', 'iou')}
# All but backbone and neck; the neck's input is what the narrow backbone changes.
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
