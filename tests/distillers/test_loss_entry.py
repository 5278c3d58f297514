"""mmkd/distillers/loss_entry.py: entries at their shortest, and steps in which they have nothing to compare."""

from __future__ import annotations

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.structures import InstanceData
from tiny_dense import single_stage
from tiny_models import (
    CLASSES,
    ROI_LOSSES,
    RPN_LOSSES,
    batch,
    cascade_rcnn,
    faster_rcnn,
    save_teacher,
)
from tiny_transformers import transformer

from mmkd.distillers import LossEntry
from mmkd.errors import ConfigError, PathError

HEAD = 'roi_head.bbox_head'


def make(folder, student, teacher, losses, **options):
    """A distiller of a tiny student and teacher, in training mode."""
    checkpoint = save_teacher(folder / 'teacher.pth', teacher)
    teacher = dict(config=dict(model=teacher), checkpoint=str(checkpoint), **options)
    torch.manual_seed(0)
    model = dict(type='Distiller', student=student, teacher=teacher, losses=losses, classes=CLASSES)
    model = MODELS.build(copy.deepcopy(model)).train()
    for module in model.modules():
        if hasattr(module, 'level_embed'):  # mmdet leaves it to init_weights
            torch.nn.init.normal_(module.level_embed)
    return model


def step(model, data=None):
    torch.manual_seed(0)
    data = copy.deepcopy(data or batch(size=(128, 160)))
    losses = model(**model.data_preprocessor(data, True), mode='loss')
    return {name: losses[name] for name in model.entries}


# ------------------------------------------------------------------------------ default modules


def without_paths(losses):
    """The same entries at their shortest."""
    return {
        name: {
            key: value
            for key, value in dict(entry, align=entry['align']['type']).items()
            if key not in ('student', 'teacher')
        }
        for name, entry in losses.items()
    }


def test_the_shortest_entries_are_those_with_all_paths(tmp_path):
    losses = {**ROI_LOSSES, **RPN_LOSSES}
    models = (faster_rcnn(), faster_rcnn(channels=24))
    short = make(tmp_path, *models, without_paths(losses))
    whole = make(tmp_path, *models, losses)
    short.load_state_dict(whole.state_dict())
    found, wanted = step(short), step(whole)
    assert all(value > 0 for value in found.values())
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name
        pairs = zip(
            (short.entries[name].student, short.entries[name].teacher),
            (whole.entries[name].student, whole.entries[name].teacher),
            strict=True,
        )
        assert all(own == other for own, other in pairs)


MEMORY = dict(type='MSE', align='EncoderMemoryAlignment')
NECK = dict(in_channels=32, out_channels=256)


@pytest.mark.parametrize(
    ('student', 'teacher', 'loss', 'sources'),
    [
        (faster_rcnn, cascade_rcnn, dict(type='KLDivergence', align='RoIClassAlignment'), (f'{HEAD}.fc_cls', f'{HEAD}.0.fc_cls')),
        (cascade_rcnn, faster_rcnn, dict(type='MSE', align='RoIBoxAlignment'), (f'{HEAD}.0.fc_reg', f'{HEAD}.fc_reg')),
        (cascade_rcnn, cascade_rcnn, dict(type='KLDivergence', align='RoIClassAlignment'), (f'{HEAD}.0.fc_cls',) * 2),
        (single_stage, single_stage, dict(type='SoftLabelBCE', align='DenseClassAlignment'), ('bbox_head',) * 2),
        (transformer, transformer, dict(type='KLDivergence', align='HungarianQueryAlignment'), ('bbox_head',) * 2),
        (transformer, transformer, dict(type='MSE', align=dict(type='HungarianQueryAlignment', of='embedding')), ('input of bbox_head[0]',) * 2),
        (transformer, transformer, dict(MEMORY), ('encoder',) * 2),
    ],
)  # fmt: skip
def test_the_default_depends_on_both_models(tmp_path, student, teacher, loss, sources):
    model = make(tmp_path, student(), teacher(), dict(loss_kd=loss))
    assert step(model)['loss_kd'] > 0
    entry = model.entries['loss_kd']
    assert (str(entry.student), str(entry.teacher)) == sources


def test_one_path_is_enough_where_the_alignment_has_no_default(tmp_path):
    for given in ('student', 'teacher'):
        entry = LossEntry('loss_kd', {'type': 'MSE', given: 'neck'})
        assert str(entry.student) == str(entry.teacher) == 'neck'
    model = make(
        tmp_path, faster_rcnn(), faster_rcnn(), dict(loss_kd=dict(type='MSE', student='neck'))
    )
    assert step(model)['loss_kd'] > 0


def test_a_given_path_replaces_the_default_of_that_model_alone(tmp_path):
    loss = dict(type='KLDivergence', align='RoIClassAlignment', teacher=f'{HEAD}.2.fc_cls')
    model = make(tmp_path, faster_rcnn(), cascade_rcnn(), dict(loss_kd=loss))
    model.prepare()
    entry = model.entries['loss_kd']
    assert (str(entry.student), str(entry.teacher)) == (f'{HEAD}.fc_cls', f'{HEAD}.2.fc_cls')


@pytest.mark.parametrize(
    ('config', 'error', 'message'),
    [
        (dict(type='MSE'), ConfigError, r"^losses\.loss_kd\.student: not given, and FeatureAlignment has no default; name a module such as 'neck'$"),
        (dict(student='neck'), ConfigError, r"^losses\.loss_kd\.type: not given; name a loss such as 'KLDivergence'$"),
        (dict(type='MSE', align='RoIClassAlignmen'), PathError, r"^losses\.loss_kd\.align\.type: 'RoIClassAlignmen' is not registered; near: RoIClassAlignment"),
        (dict(type='MSE', align=3), ConfigError, r'^losses\.loss_kd\.align: must be a name or a dict with a type, got 3$'),
        (dict(type='MSE', align=dict(type='RoIClassAlignment', select='x')), ConfigError, r"^losses\.loss_kd\.align\.select: must be one of \('all', 'labels', 'teacher'\), got 'x'$"),
    ],
)  # fmt: skip
def test_messages_name_the_key(config, error, message):
    with pytest.raises(error, match=message):
        LossEntry('loss_kd', config)


# ------------------------------------------------------------------------------ nothing to compare


def empty_batch():
    """Images without objects: together with an RPN that proposes nothing, no proposals are sampled."""
    data = batch(size=(128, 160))
    for sample in data['data_samples']:
        sample.gt_instances = InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
        )
    return data


def without_proposals(config):
    for each in (config['train_cfg']['rpn_proposal'], config['test_cfg']['rpn']):
        each['min_bbox_size'] = 10_000
    return config


BOXES = dict(
    loss_kd_bbox=dict(type='GIoU', align=dict(type='RoIBoxAlignment', coordinates='box')),
    loss_kd_bound=dict(type='BoundedRegression', align='RoIBoxAlignment'),
)
CLASS_LOSSES = dict(
    loss_kd_cls=dict(type='KLDivergence', align='RoIClassAlignment'),
    loss_kd_labels=dict(
        type='KLDivergence', align=dict(type='RoIClassAlignment', select='labels', confidence=True)
    ),
    loss_kd_dkd=dict(type='DKD', align='RoIClassAlignment'),
)


@pytest.mark.parametrize('proposals', ['student', 'teacher'])
def test_a_step_without_proposals(tmp_path, proposals):
    """The losses are 0, and gradients reach the head, without which DDP would wait for ever."""
    losses = {**CLASS_LOSSES, **BOXES}
    if proposals == 'teacher':  # which have no labels
        losses = dict(loss_kd_cls=losses['loss_kd_cls'], loss_kd_bbox=losses['loss_kd_bbox'])
    models = (without_proposals(faster_rcnn()), without_proposals(faster_rcnn()))
    model = make(tmp_path, *models, losses, proposals=proposals)
    found = step(model, empty_batch())
    assert all(value == 0 for value in found.values())
    for name, value in found.items():
        layer = 'fc_reg' if name in BOXES else 'fc_cls'
        weight = model.roi_head.bbox_head.get_submodule(layer).weight
        (gradient,) = torch.autograd.grad(value, weight, retain_graph=True)
        assert not gradient.any(), name
    if proposals == 'student':
        assert all(value.isfinite() for value in step(model).values())  # labels give some again


@pytest.mark.parametrize('teacher', [faster_rcnn, cascade_rcnn], ids=lambda make: make.__name__)
def test_a_cascade_without_proposals_ends_at_its_first_stage(tmp_path, teacher):
    stages = range(3) if teacher is cascade_rcnn else range(1)
    path = HEAD + ('.{}' if teacher is cascade_rcnn else '')
    losses = {
        f'{name}_{stage}': dict(
            entry, student=f'{HEAD}.{stage}.{layer}', teacher=f'{path.format(stage)}.{layer}'
        )
        for stage in stages
        for entries, layer in ((CLASS_LOSSES, 'fc_cls'), (BOXES, 'fc_reg'))
        for name, entry in entries.items()
    }
    model = make(tmp_path, without_proposals(cascade_rcnn()), without_proposals(teacher()), losses)
    for _ in range(2):
        found = step(model, empty_batch())
        assert len(found) == 5 * len(stages)
        assert all(value == 0 and value.requires_grad for value in found.values())
        sum(found.values()).backward()
    assert all(value.isfinite() for value in step(model).values())
