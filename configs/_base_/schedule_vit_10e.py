# AdamW for 10 epochs, with learning rates that fall with the depth of a transformer's layers: ViTDet
# (arXiv 2203.16527; detectron2, mask_rcnn_vitdet_b_100ep.py), in the 10 epochs that all detectors here have.
_base_ = './schedule_10e.py'

optim_wrapper = dict(
    constructor='LayerDecayConstructor',
    optimizer=dict(
        _delete_=True,
        type='AdamW',
        # ViTDet: 1e-4 for 64 images a step. For the 8 of voc2012.py by the square root of their ratio, as
        # for Adam (Malladi et al. 2022, arXiv 2205.10287). Not tuned on VOC.
        lr=3.5e-5,
        betas=(0.9, 0.999),  # ViTDet
        weight_decay=0.1,  # ViTDet
    ),
    paramwise_cfg=dict(
        layer_decay_rate=0.7,  # ViTDet, for ViT-B
        norm_decay_mult=0.0,  # ViTDet's published config, as the next
        custom_keys={'pos_embed': dict(decay_mult=0.0)},
    ),
    clip_grad=dict(_delete_=True, max_norm=1.0),  # ours: ten epochs leave no time to recover
)
# schedule_10e.py's linear rule is that of SGD.
auto_scale_lr = dict(enable=False)
