# Tuning for benchmarks/studies/voc_160.py on a fifth of its training images, held out: the loss weights,
# and a published method on classes. The lines are in benchmarks/tuning.jsonl. These are single runs, not
# results; and the teacher was trained on the held-out images too. DKD was not tried: it needs the labelled
# class of each proposal, and the proposals of a cached teacher have none.
_base_ = '../voc_160.py'

held_out = 0.2
seeds = (7,)
distilled = 'benchmarks/configs/voc/distilled.py'
student = {
    'model.student.neck.out_channels': 32,
    'model.student.rpn_head.in_channels': 32,
    'model.student.rpn_head.feat_channels': 32,
    'model.student.roi_head.bbox_roi_extractor.out_channels': 32,
    'model.student.roi_head.bbox_head.in_channels': 32,
    'model.student.roi_head.bbox_head.fc_out_channels': 128,
    'model.student.train_cfg.rcnn.sampler.num': 32,
}
backbone = {'model.init_student': dict(from_teacher=['backbone'])}


def loss_weights(weight):
    """Options that set the weight of both losses."""
    return {f'model.losses.loss_kd_{name}.loss_weight': weight for name in ('cls', 'bbox')}


def class_loss(type, weight, **arguments):
    """Options that replace the KL divergence on the classes of the RoI heads; MSE on boxes stays."""
    loss = dict(
        _delete_=True,
        type=type,
        student='roi_head.bbox_head.fc_cls',
        teacher='roi_head.bbox_head.fc_cls',
        align=dict(type='RoIClassAlignment'),
        loss_weight=weight,
        **arguments,
    )
    return {'model.losses.loss_kd_cls': loss}


recipes = {
    'kl-mse-0.3': dict(config=distilled, options={**student, **loss_weights(0.3)}, cached=True),
    'kl-mse-3': dict(config=distilled, options={**student, **loss_weights(3.0)}, cached=True),
    'inherit-kl-mse-0.3': dict(
        config=distilled, options={**student, **backbone, **loss_weights(0.3)}, cached=True
    ),
    'inherit-dist-0.3': dict(
        config=distilled, options={**student, **backbone, **class_loss('DIST', 0.3)}, cached=True
    ),
    'inherit-dist-1': dict(
        config=distilled, options={**student, **backbone, **class_loss('DIST', 1.0)}, cached=True
    ),
    'kl-mse-auto-0.3': dict(
        config=distilled,
        options={**student, **loss_weights(dict(_delete_=True, ratio=0.3))},
        cached=True,
    ),
    'kl-mse-auto-1': dict(
        config=distilled,
        options={**student, **loss_weights(dict(_delete_=True, ratio=1.0))},
        cached=True,
    ),
    'kl-mse-auto-2': dict(
        config=distilled,
        options={**student, **loss_weights(dict(_delete_=True, ratio=2.0))},
        cached=True,
    ),
    'kl-mse-auto-3': dict(
        config=distilled,
        options={**student, **loss_weights(dict(_delete_=True, ratio=3.0))},
        cached=True,
    ),
    # The weight follows the gradients for the whole run.
    'kl-mse-auto-1-every-10': dict(
        config=distilled,
        options={**student, **loss_weights(dict(_delete_=True, ratio=1.0, every=10))},
        cached=True,
    ),
}
