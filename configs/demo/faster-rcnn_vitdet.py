# The same transformer in ViTDet's form: window attention, two global layers, relative positions.
_base_ = './faster-rcnn_vit-patch.py'

model = dict(
    backbone=dict(
        class_token=False,
        final_norm=False,
        window_size=5,  # tuned for the demo: a quarter of the image's side
        global_layers=(2, 5),
        rel_pos_grid=20,
    ),
)
