# AdamW with layer-wise learning rate decay, as ViTDet (arXiv 2203.16527; detectron2,
# mask_rcnn_vitdet_b_100ep.py). 10 epochs, as for all detectors here.
_base_ = './schedule_10e.py'

optim_wrapper = dict(
    constructor='LayerDecayConstructor',
    optimizer=dict(
        _delete_=True,
        type='AdamW',
        # ViTDet uses 1e-4 for 64 images per step. Scaled to the 8 images of voc2012.py by the square root
        # of the ratio, the rule for Adam (Malladi et al. 2022, arXiv 2205.10287). Not tuned on VOC.
        lr=3.5e-5,
        betas=(0.9, 0.999),  # ViTDet
        weight_decay=0.1,  # ViTDet
    ),
    paramwise_cfg=dict(
        layer_decay_rate=0.7,  # ViTDet, for ViT-B
        norm_decay_mult=0.0,  # ViTDet's published config
        custom_keys={'pos_embed': dict(decay_mult=0.0)},  # ViTDet's published config
    ),
    # Our choice: ten epochs are too short to recover from a bad step.
    clip_grad=dict(_delete_=True, max_norm=1.0),
)
# The linear scaling rule of schedule_10e.py holds for SGD only.
auto_scale_lr = dict(enable=False)
