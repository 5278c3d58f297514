# Labels, and the outputs of the 80-class teacher for the two classes at every position: class scores,
# objectness and box.
_base_ = './labels.py'

model = dict(
    losses=dict(
        loss_kd_cls=dict(
            type='SoftLabelBCE',
            beta=0.0,  # plain cross-entropy, as YOLOX's own classification loss
            loss_weight=1.0,
            student='bbox_head',
            teacher='bbox_head',
            align=dict(type='DenseClassAlignment', normalizer='confidence'),
        ),
        loss_kd_obj=dict(
            type='SoftLabelBCE',
            # CrossKD's loss: most positions show no object, and the student soon agrees on them.
            beta=2.0,
            loss_weight=1.0,
            student='bbox_head',
            teacher='bbox_head',
            align=dict(type='DenseObjectnessAlignment', normalizer='confidence'),
        ),
        loss_kd_bbox=dict(
            type='GIoU',
            loss_weight=5.0,  # the weight of YOLOX's own box loss
            student='bbox_head',
            teacher='bbox_head',
            align=dict(type='DenseBoxAlignment', normalizer='confidence'),
        ),
    )
)
