# ViTDet: ViT-B/16 with windows and four global layers, relative positions, simple feature pyramid (Li et al.
# 2022, arXiv 2203.16527), with the heads of Faster R-CNN. Starts from MAE's weights, which mmkd converts
# while it reads them.
_base_ = '../_base_/faster-rcnn_vit.py'

model = dict(
    backbone=dict(
        class_token=False,
        final_norm=False,
        window_size=14,  # ViTDet, sec. 3
        global_layers=(2, 5, 8, 11),  # the same: the last layer of each quarter
        rel_pos_grid=64,  # as published, for images of 1024 px; interpolated to others
        init_cfg=dict(
            type='ConvertedCheckpoint',
            source='mae',
            checkpoint='https://dl.fbaipublicfiles.com/mae/pretrain/mae_pretrain_vit_base.pth',
        ),
    ),
)
