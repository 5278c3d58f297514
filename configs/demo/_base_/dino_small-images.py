# mmdet's DINO for images of 160 px, trained from random weights on a CPU. Child configs set the backbone's
# width and the length of the schedule. "tuned for the demo" means: chosen on other images than those of the
# reported scores (see drawn_scenes.py).
_base_ = ['./drawn_scenes.py']

# tuned for the demo; 256 in mmdet's dino-4scale_r50_8xb2-12e_coco.py. mmdet 3.3.0 supports no other width
# than 256 for DINO, so this config needs onedl-mmdetection.
width = 96
levels = 3
# As in faster-rcnn_small-images.py: batch norm in every part, for training from random weights.
norm_cfg = dict(type='BN')
ffn_cfg = dict(embed_dims=width, feedforward_channels=256, ffn_drop=0.0)
self_attn_cfg = dict(embed_dims=width, num_heads=4, dropout=0.0)
deformable_cfg = dict(embed_dims=width, num_heads=4, num_levels=levels, dropout=0.0)

model = dict(
    type='DINO',
    num_queries=40,  # tuned for the demo: an image has at most nine objects
    with_box_refine=True,
    as_two_stage=True,
    num_feature_levels=levels,
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=1,
    ),
    backbone=dict(
        type='ResNet',
        depth=18,
        num_stages=4,
        out_indices=(1, 2, 3),  # strides 8, 16, 32: dino-4scale without its fourth level
        frozen_stages=-1,
        norm_cfg=norm_cfg,
        norm_eval=False,
        style='pytorch',
    ),
    neck=dict(
        type='ChannelMapper',
        kernel_size=1,
        out_channels=width,
        act_cfg=None,
        norm_cfg=dict(type='GN', num_groups=16),
        num_outs=levels,
    ),
    # tuned for the demo: two encoder and three decoder layers instead of six and six
    encoder=dict(num_layers=2, layer_cfg=dict(self_attn_cfg=deformable_cfg, ffn_cfg=ffn_cfg)),
    decoder=dict(
        num_layers=3,
        return_intermediate=True,
        layer_cfg=dict(self_attn_cfg=self_attn_cfg, cross_attn_cfg=deformable_cfg, ffn_cfg=ffn_cfg),
        post_norm_cfg=None,
    ),
    # The rest is as in dino-4scale_r50_8xb2-12e_coco.py, except for fewer denoising queries.
    positional_encoding=dict(num_feats=width // 2, normalize=True, offset=0.0, temperature=20),
    bbox_head=dict(
        type='DINOHead',
        num_classes=6,
        embed_dims=width,
        sync_cls_avg_factor=True,
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=5.0),
        loss_iou=dict(type='GIoULoss', loss_weight=2.0),
    ),
    dn_cfg=dict(
        label_noise_scale=0.5,
        box_noise_scale=1.0,
        group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=30),
    ),
    train_cfg=dict(
        assigner=dict(
            type='HungarianAssigner',
            match_costs=[
                dict(type='FocalLossCost', weight=2.0),
                dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
                dict(type='IoUCost', iou_mode='giou', weight=2.0),
            ],
        )
    ),
    test_cfg=dict(max_per_img=40),
)

optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(
        type='AdamW',
        lr=0.0005,  # tuned for the demo; 0.0001 in dino-4scale, which starts from ImageNet weights
        weight_decay=0.0001,  # dino-4scale
    ),
    clip_grad=dict(max_norm=1.0),  # tuned for the demo; 0.1 in dino-4scale
)
