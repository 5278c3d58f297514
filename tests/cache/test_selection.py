"""mmkd/cache/selection.py: what is kept is what the losses read; and what that takes on disk."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from tiny_caches import distiller, single, teacher_of
from tiny_dense import single_stage
from tiny_models import CLASSES, ROI_LOSSES, RPN_LOSSES, batch, faster_rcnn, feature_loss
from tiny_transformers import transformer

from mmkd.cache.selection import NUM_PRIORS, contents_for, restored_contents
from mmkd.distillers.teacher_outputs import TeacherOutputs
from mmkd.errors import ConfigError

RAW = batch((128, 160), images=1)
HEAD = dict(student='bbox_head', teacher='bbox_head')
EMBEDDING = dict(module='bbox_head', capture='input', index=0)
OWN = dict(proposals='teacher', num_proposals=100)


def queries(**align) -> dict:
    align = dict(dict(type='HungarianQueryAlignment'), **align)
    return dict(HEAD, type='KLDivergence', align=align)


def dense(align: str = 'DenseClassAlignment', **more) -> dict:
    kind = dict(DenseBoxAlignment='GIoU').get(align, 'KLDivergence')
    activation = dict(activation='sigmoid') if align == 'DenseClassAlignment' else {}
    return dict(HEAD, type=kind, align=dict(type=align, **more), **activation)


def keeper(
    path: Path, model: dict, losses: dict, student: dict | None = None, **options
) -> TeacherOutputs:
    teacher = teacher_of(path / 'teacher.pth', model, **options)
    return TeacherOutputs(distiller(student or copy.deepcopy(model), teacher, losses), 'teacher')


def kept(keeper: TeacherOutputs) -> tuple[set[str], int]:
    """Names of what is kept of an image, and its bytes."""
    (fields,) = keeper.extract_batch(single(RAW)[0]).values()
    return set(fields) - {'view', 'file'}, sum(value.nbytes for value in fields.values())


def test_a_published_detr_takes_17_kb(tmp_path):
    """A hundred queries of eighty classes, where the last decoder layer is compared."""
    config = transformer('DETR', classes=80, queries=100, layers=(1, 6))
    student = transformer('DETR', layers=(1, 6))
    classes = CLASSES + tuple(f'class {index}' for index in range(77))
    for layers in ('last', [-1], [[2, 5]]):
        losses = dict(loss_kd=queries(layers=layers))
        made = keeper(tmp_path, config, losses, student, classes=classes)
        names, size = kept(made)
        assert names == {'queries.scores', 'queries.boxes'}
        assert size == 100 * (81 * 2 + 4 * 4) + 6 * 8 + 2 * 8  # 17.9 kB
    made = keeper(tmp_path, config, dict(loss_kd=queries()), student, classes=classes)
    assert kept(made)[1] == pytest.approx(6 * size, rel=0.01)


def test_layers_and_embeddings_are_those_of_the_losses(tmp_path):
    config = transformer('DETR', layers=(1, 4))
    losses = dict(
        loss_one=queries(layers=[0]),
        loss_two=queries(of='box', layers=[[0, 3], [1, 0]], no_object_weight=1.0),
    )
    made = keeper(tmp_path, config, losses)
    assert made.contents[0].layers == [0, 3]
    assert kept(made)[0] == {'queries.scores', 'queries.boxes'}
    losses['loss_three'] = dict(
        type='MSE',
        student=EMBEDDING,
        teacher=EMBEDDING,
        align=dict(type='HungarianQueryAlignment', of='embedding', layers='last'),
    )
    made = keeper(tmp_path, config, losses)
    assert kept(made)[0] == {'queries.scores', 'queries.boxes', 'queries.embeddings'}
    (fields,) = made.extract_batch(single(RAW)[0]).values()
    assert {len(value) for name, value in fields.items() if name[:7] == 'queries'} == {2}


def test_of_a_two_stage_teacher(tmp_path):
    config = faster_rcnn()
    roi = 'proposals.roi_head.bbox_head'
    rpn = {'rpn.places', 'rpn.part0', 'rpn.part1', 'rpn.rest0'}
    cases = (
        (ROI_LOSSES, {'proposals.boxes', f'{roi}.fc_cls', f'{roi}.fc_reg'}, False),
        (
            dict(loss_kd_cls=ROI_LOSSES['loss_kd_cls']),
            {'proposals.boxes', f'{roi}.fc_cls'},
            False,
        ),
        (RPN_LOSSES, rpn, False),
        (dict(loss_kd=RPN_LOSSES['loss_kd_rpn_cls']), rpn - {'rpn.part1'}, False),
        (
            dict(loss_neck=feature_loss(16, 16)),
            {f'{what}.0.{level}' for what in ('maps', 'strides') for level in range(5)},
            True,
        ),
    )
    every, names = {}, set()
    for losses, wanted, large in cases:
        made = keeper(tmp_path, config, losses, **OWN)
        assert kept(made)[0] == wanted
        assert any(content.is_large for content in made.contents) == large
        every |= losses
        names |= wanted
    made = keeper(tmp_path, config, every, **OWN)
    assert kept(made)[0] == names
    assert [content.kind for content in made.contents] == ['proposals', 'rpn', 'maps']


def test_of_a_dense_head(tmp_path):
    """Scores and boxes always, as their places are chosen together; centredness where there is one."""
    for kind, parts in (('RetinaNet', 2), ('FCOS', 3)):
        made = keeper(tmp_path, single_stage(kind), dict(loss_kd=dense()))
        names, _ = kept(made)
        assert names >= {'dense.places', *(f'dense.part{number}' for number in range(parts))}
        assert f'dense.part{parts}' not in names
        (fields,) = made.extract_batch(single(RAW)[0]).values()
        assert len(fields['dense.places']) == NUM_PRIORS
    made = TeacherOutputs(
        distiller(
            single_stage('FCOS'),
            teacher_of(tmp_path / 'teacher.pth', single_stage('FCOS')),
            dict(loss_kd=dense()),
        ),
        'teacher',
        num_priors=7,
    )
    (fields,) = made.extract_batch(single(RAW)[0]).values()
    assert len(fields['dense.places']) == 7


def test_a_part_of_a_head_by_its_module(tmp_path):
    """What one convolution of the head gives is one of its outputs."""
    layer = 'bbox_head.retina_cls'
    entry = dict(dense(), student=layer, teacher=layer)
    made = keeper(tmp_path, single_stage('RetinaNet'), dict(loss_kd=entry))
    kept(made)
    assert made.contents[0].settings['aliases'] == {layer: 0}
    tower = 'bbox_head.cls_convs.0'
    entry = dict(type='MSE', student=tower, teacher=tower)
    made = keeper(tmp_path, single_stage('RetinaNet'), dict(loss_kd=dense(), loss_tower=entry))
    with pytest.raises(ConfigError, match='not one of the outputs of bbox_head; record bbox_head'):
        kept(made)


REFUSED = {
    'crossed heads': (
        single_stage('GFL'),
        dict(
            dense(crossed='bbox_head.cls_convs.0.gn'),
            student=dict(module='bbox_head.cls_convs.0.gn', copy=True),
        ),
        {},
        'needs the weights of the teacher.s head',
    ),
    'shared queries': (
        transformer('DETR'),
        dict(queries(type='SharedQueryAlignment')),
        {},
        'outputs for random queries',
    ),
    'index queries': (
        transformer('DETR'),
        dict(queries(type='IndexQueryAlignment')),
        {},
        'a query of one index detects objects in one part of the view',
    ),
    'encoder memory': (
        transformer('DETR'),
        dict(
            type='MSE',
            student='encoder',
            teacher='encoder',
            align=dict(type='EncoderMemoryAlignment'),
        ),
        {},
        "cannot store an encoder's output",
    ),
    'student proposals': (
        faster_rcnn(),
        ROI_LOSSES['loss_kd_cls'],
        {},
        "set teacher.proposals='teacher'",
    ),
    'student proposals of a layer': (
        faster_rcnn(),
        dict(
            type='MSE',
            student=dict(module='roi_head.bbox_head.shared_fcs.0', copy=True),
            teacher=dict(module='roi_head.bbox_head.shared_fcs.0', copy=True),
        ),
        {},
        "set teacher.proposals='teacher'",
    ),
    'pooled features': (
        faster_rcnn(),
        dict(
            type='MSE',
            student='roi_head.bbox_roi_extractor',
            teacher='roi_head.bbox_roi_extractor',
        ),
        OWN,
        "'roi_head.bbox_roi_extractor' of a FasterRCNN cannot be stored in a cache",
    ),
    'a decoder': (
        transformer('DETR'),
        dict(
            type='MSE',
            student=dict(module='decoder', index=0),
            teacher=dict(module='decoder', index=0),
        ),
        {},
        'of a DETR cannot be stored in a cache',
    ),
    'an input': (
        faster_rcnn(),
        dict(
            type='MSE',
            student=dict(module='neck', capture='input', index=0),
            teacher=dict(module='neck', capture='input', index=0),
        ),
        {},
        'cannot be stored in a cache',
    ),
}


@pytest.mark.parametrize(('model', 'loss', 'options', 'message'), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_kept_is_refused_with_the_loss(tmp_path, model, loss, options, message):
    """The same when a cache is written and when one is to be read."""
    with pytest.raises(ConfigError, match=rf'^losses\.loss_bad[.:].*{message}'):
        keeper(tmp_path, model, dict(loss_bad=loss), **options)


def test_what_is_described_is_what_comes_back(tmp_path):
    made = keeper(tmp_path, faster_rcnn(), dict(ROI_LOSSES, loss_neck=feature_loss(16, 16)), **OWN)
    kept(made)
    described = {
        content.kind: json.loads(json.dumps(content.describe())) for content in made.contents
    }
    again = restored_contents(described, made.teacher.detector, made.teacher.family)
    for content, other in zip(made.contents, again, strict=True):
        assert type(content) is type(other)
        assert content.sources == other.sources
        assert content.settings == other.settings
        assert other.lacks(content) is None


def test_losses_of_other_teachers_are_no_matter(tmp_path):
    """Each has a cache of its own."""
    path = tmp_path / 'teacher.pth'
    teacher = teacher_of(path, faster_rcnn())
    losses = dict(loss_one=feature_loss(16, 16), loss_two=dict(RPN_LOSSES['loss_kd_rpn_cls']))
    losses['loss_two']['teacher_name'] = 'other'
    model = distiller(faster_rcnn(), teacher, losses, teachers=dict(other=teacher))
    for name, kind in (('teacher', 'maps'), ('other', 'rpn')):
        assert [content.kind for content in TeacherOutputs(model, name).contents] == [kind]
    assert contents_for([], 'teacher', model.teacher.detector, model.teacher.family) == []
