# ViTDet (Li et al. 2022, arXiv 2203.16527): ViT-B/16 with window attention, four global layers, relative
# positions and a simple feature pyramid, and the heads of Faster R-CNN. It starts from MAE's weights; mmkd
# converts them when it loads the file.
_base_ = '../_base_/faster-rcnn_vit.py'

model = dict(
    backbone=dict(
        class_token=False,
        final_norm=False,
        window_size=14,  # ViTDet, sec. 3
        global_layers=(2, 5, 8, 11),  # ViTDet, sec. 3: the last layer of each quarter
        rel_pos_grid=64,  # as published, for images of 1024 px; interpolated for other sizes
        init_cfg=dict(
            type='ConvertedCheckpoint',
            source='mae',
            checkpoint='https://dl.fbaipublicfiles.com/mae/pretrain/mae_pretrain_vit_base.pth',
        ),
    ),
)
