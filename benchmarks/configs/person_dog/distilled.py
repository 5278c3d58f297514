# Labels, and what the teacher of 80 classes says at each place of the two: which class, whether there is an
# object, and its box.
_base_ = './labels.py'

model = dict(
    losses=dict(
        loss_kd_cls=dict(
            type='SoftLabelBCE',
            beta=0.0,  # as YOLOX's own classification loss
            loss_weight=1.0,
            student='bbox_head',
            teacher='bbox_head',
            align=dict(type='DenseClassAlignment', normalizer='confidence'),
        ),
        loss_kd_obj=dict(
            type='SoftLabelBCE',
            beta=2.0,  # CrossKD's: most places are empty, and soon known to be
            loss_weight=1.0,
            student='bbox_head',
            teacher='bbox_head',
            align=dict(type='DenseObjectnessAlignment', normalizer='confidence'),
        ),
        loss_kd_bbox=dict(
            type='GIoU',
            loss_weight=5.0,  # as YOLOX's own loss of boxes
            student='bbox_head',
            teacher='bbox_head',
            align=dict(type='DenseBoxAlignment', normalizer='confidence'),
        ),
    )
)
