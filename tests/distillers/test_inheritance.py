"""mmkd/distillers/inheritance.py, alone and through a distiller."""

from __future__ import annotations

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.logging import MMLogger
from tiny_dense import single_stage
from tiny_models import batch, cascade_rcnn, faster_rcnn, mask_rcnn, save_teacher
from tiny_training import train, training_config, write_coco
from tiny_transformers import KINDS, transformer

from mmkd.alignments import ClassMap
from mmkd.distillers.inheritance import depends_on_classes, inherit
from mmkd.errors import ConfigError, PathError

CLASSES = ('cat', 'dog', 'person')
EVERYTHING = ['encoder', 'decoder', 'bbox_head']


def pair(student, teacher):
    torch.manual_seed(0)
    made = [MODELS.build(config) for config in (student, teacher)]
    for model in made:
        model.init_weights()
    # Initialised alike, biases and norms would agree without being copied.
    with torch.no_grad():
        for parameter in made[1].parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


@pytest.mark.parametrize('kind', KINDS)
def test_a_student_of_the_same_shape_takes_everything(kind):
    student, teacher = pair(transformer(kind), transformer(kind))
    report = inherit(student, teacher, EVERYTHING, ClassMap(CLASSES, CLASSES))
    assert not report.not_copied and 'all that init_student.from_teacher names' in str(report)
    for name in EVERYTHING:
        theirs = getattr(teacher, name).state_dict()
        for key, value in getattr(student, name).state_dict().items():
            assert torch.equal(value, theirs[key]), f'{name}.{key}'
    assert not torch.equal(student.neck.convs[0].conv.weight, teacher.neck.convs[0].conv.weight)


@pytest.mark.parametrize(('kind', 'classifier'), [('DETR', 'fc_cls'), ('DINO', 'cls_branches.1')])
def test_the_classifiers_rows_follow_the_classes(kind, classifier):
    """In another order, with a class the teacher lacks, and no-object where there is one."""
    known = ('bird', 'person', 'cat', 'dog', 'horse')
    student, teacher = pair(transformer(kind, classes=3), transformer(kind, classes=5))
    own = student.bbox_head.get_submodule(classifier).weight.clone()
    classes = ClassMap(('dog', 'unicorn', 'person'), known, exclude=['unicorn'])
    inherit(student, teacher, EVERYTHING, classes)
    ours, theirs = (model.bbox_head.get_submodule(classifier) for model in (student, teacher))
    for tensor in ('weight', 'bias'):
        a, b = getattr(ours, tensor), getattr(theirs, tensor)
        assert torch.equal(a[0], b[3]) and torch.equal(a[2], b[1])
        if kind == 'DETR':
            assert torch.equal(a[-1], b[-1])
    assert torch.equal(ours.weight[1], own[1])


def test_rows_of_classes_the_teacher_lacks_are_reported():
    student, teacher = pair(transformer('DETR', classes=3), transformer('DETR', classes=3))
    classes = ClassMap(('dog', 'unicorn', 'person'), CLASSES, exclude=['unicorn'])
    report = inherit(student, teacher, ['bbox_head.fc_cls'], classes)
    assert report.num_weights == 3 * (32 + 1)  # two classes and no-object
    assert (
        report.not_copied['1 rows of bbox_head.fc_cls.weight'] == 'classes that the teacher lacks'
    )


def test_labels_to_denoise_are_embedded_as_the_teachers():
    student, teacher = pair(transformer('DINO', classes=2), transformer('DINO', classes=3))
    classes = ClassMap(('person', 'cat'), CLASSES)
    report = inherit(student, teacher, ['dn_query_generator'], classes)
    ours, theirs = (m.dn_query_generator.label_embedding.weight for m in (student, teacher))
    assert torch.equal(ours, theirs[[2, 0]]) and len(report.copied) == 1


@pytest.mark.parametrize('kind', ['DETR', 'DeformableDETR', 'TwoStageDeformableDETR', 'DINO'])
def test_fewer_layers_take_those_at_their_share_of_the_depth(kind):
    student, teacher = pair(transformer(kind, layers=(1, 2)), transformer(kind, layers=(2, 4)))
    inherit(student, teacher, EVERYTHING, ClassMap(CLASSES, CLASSES))

    def same(ours, theirs):
        theirs = teacher.get_submodule(theirs).state_dict()
        ours = student.get_submodule(ours).state_dict()
        return all(torch.equal(value, theirs[key]) for key, value in ours.items())

    assert same('encoder.layers.0', 'encoder.layers.1')
    assert same('decoder.layers.0', 'decoder.layers.1')
    assert same('decoder.layers.1', 'decoder.layers.3')
    if kind != 'DETR':
        for branch in ('cls_branches', 'reg_branches'):
            assert same(f'bbox_head.{branch}.1', f'bbox_head.{branch}.3')
            if kind != 'DeformableDETR':  # the encoder's
                assert same(f'bbox_head.{branch}.2', f'bbox_head.{branch}.4')


def test_what_does_not_fit_is_left_and_reported():
    student, teacher = pair(transformer('DETR', queries=5), transformer('DETR', queries=8))
    before = student.query_embedding.weight.clone()
    report = inherit(student, teacher, ['query_embedding', 'decoder'], ClassMap(CLASSES, CLASSES))
    assert torch.equal(student.query_embedding.weight, before)
    assert report.not_copied == {
        'query_embedding.weight': 'shapes differ: student (5, 32), teacher (8, 32)'
    }
    assert '1 not copied: query_embedding.weight (shapes differ' in str(report)


def test_a_sigmoid_head_takes_no_rows_of_a_softmax_head():
    student, teacher = pair(
        transformer('ConditionalDETR', width=256), transformer('DETR', width=256)
    )
    report = inherit(student, teacher, ['bbox_head'], ClassMap(CLASSES, CLASSES))
    assert set(report.not_copied) == {'bbox_head.fc_cls.weight', 'bbox_head.fc_cls.bias'}
    assert 'one head uses a softmax and the other sigmoids' in str(report)


def test_other_detectors_inherit_too():
    student, teacher = pair(faster_rcnn(), faster_rcnn())
    report = inherit(student, teacher, ['rpn_head'])
    assert not report.not_copied
    assert torch.equal(student.rpn_head.rpn_cls.weight, teacher.rpn_head.rpn_cls.weight)
    report = inherit(student, teacher, ['roi_head'], ClassMap(('person', 'dog', 'cat'), CLASSES))
    ours, theirs = student.roi_head.bbox_head.fc_cls, teacher.roi_head.bbox_head.fc_cls
    assert torch.equal(ours.weight, theirs.weight[[2, 1, 0, 3]])


def test_boxes_and_masks_of_an_roi_head_follow_the_classes():
    order, classes = [2, 0], ClassMap(('person', 'cat'), CLASSES)
    student, teacher = pair(mask_rcnn(classes=2), mask_rcnn(classes=3))
    report = inherit(student, teacher, ['roi_head'], classes)
    assert not report.not_copied
    ours, theirs = (model.roi_head for model in (student, teacher))
    for tensor in ('weight', 'bias'):
        a, b = (
            getattr(head.bbox_head.fc_reg, tensor).unflatten(0, (-1, 4)) for head in (ours, theirs)
        )
        assert torch.equal(a, b[order])
        a, b = (getattr(head.mask_head.conv_logits, tensor) for head in (ours, theirs))
        assert torch.equal(a, b[order])
    assert depends_on_classes(student, ['roi_head.mask_head'])
    assert not depends_on_classes(student, ['roi_head.bbox_head.shared_fcs', 'rpn_head'])


def test_rows_of_boxes_the_teacher_lacks_are_reported():
    student, teacher = pair(faster_rcnn(), faster_rcnn())
    classes = ClassMap(('dog', 'unicorn', 'person'), CLASSES, exclude=['unicorn'])
    own = student.roi_head.bbox_head.fc_reg.weight.clone()
    report = inherit(student, teacher, ['roi_head.bbox_head.fc_reg'], classes)
    assert report.num_weights == 2 * 4 * (32 + 1)
    assert '4 rows of roi_head.bbox_head.fc_reg.weight' in report.not_copied
    assert torch.equal(student.roi_head.bbox_head.fc_reg.weight[4:8], own[4:8])


def test_each_stage_of_a_cascade_takes_that_of_its_number():
    student, teacher = pair(cascade_rcnn(classes=2), cascade_rcnn(classes=3))
    classes = ClassMap(('person', 'cat'), CLASSES)
    assert depends_on_classes(student, ['roi_head.bbox_head.1'])
    assert not depends_on_classes(student, ['roi_head.bbox_head.1.fc_reg'])  # agnostic of classes
    inherit(student, teacher, ['roi_head.bbox_head.1'], classes)
    for stage, (a, b) in enumerate(
        zip(student.roi_head.bbox_head, teacher.roi_head.bbox_head, strict=True)
    ):
        assert torch.equal(a.fc_cls.weight, b.fc_cls.weight[[2, 0, 3]]) == (stage == 1)
        assert torch.equal(a.fc_reg.weight, b.fc_reg.weight) == (stage == 1)
    # A single head has no counterpart, and one that is agnostic of classes none that is not.
    single = pair(cascade_rcnn(), faster_rcnn())
    with pytest.raises(ConfigError, match='not in the teacher'):
        inherit(*single, ['roi_head'], ClassMap(CLASSES, CLASSES))
    agnostic = dict(roi_head=dict(bbox_head=dict(reg_class_agnostic=True)))
    report = inherit(
        *pair(faster_rcnn(), faster_rcnn(**agnostic)), ['roi_head'], ClassMap(CLASSES, CLASSES)
    )
    assert set(report.not_copied) == {f'roi_head.bbox_head.fc_reg.{t}' for t in ('weight', 'bias')}


@pytest.mark.parametrize(
    ('kind', 'classifier', 'priors'),
    [
        ('RetinaNet', 'retina_cls', 9),
        ('FCOS', 'conv_cls', 1),
        ('GFL', 'gfl_cls', 1),
        ('RTMDet', 'rtm_cls.1', 1),
        ('YOLOX', 'multi_level_conv_cls.2', 1),
    ],
)
def test_dense_classifiers_have_their_rows_chosen_for_each_prior(kind, classifier, priors):
    student, teacher = pair(single_stage(kind, classes=2), single_stage(kind, classes=3))
    classes = ClassMap(('person', 'cat'), CLASSES)
    report = inherit(student, teacher, ['bbox_head'], classes)
    assert not report.not_copied
    ours, theirs = (model.bbox_head.get_submodule(classifier) for model in (student, teacher))
    for tensor in ('weight', 'bias'):
        a, b = (getattr(layer, tensor).unflatten(0, (priors, -1)) for layer in (ours, theirs))
        assert torch.equal(a, b[:, [2, 0]])


def test_a_classifier_of_the_same_size_is_put_in_order_too():
    """As many classes, in another order: the shapes agree, the rows do not."""
    student, teacher = pair(single_stage('YOLOX'), single_stage('YOLOX'))
    inherit(student, teacher, ['bbox_head'], ClassMap(('dog', 'person', 'cat'), CLASSES))
    ours, theirs = (model.bbox_head.multi_level_conv_cls[0].bias for model in (student, teacher))
    assert torch.equal(ours, theirs[[1, 2, 0]])


def test_mistakes_are_named():
    student, teacher = pair(transformer('DETR'), transformer('DINO'))
    with pytest.raises(PathError, match="the student .DETR. has no module 'encodr'; near: encoder"):
        inherit(student, teacher, ['encodr'])
    with pytest.raises(PathError, match="the teacher .DINO. has no module 'bbox_head.fc_cls'"):
        inherit(student, teacher, ['bbox_head.fc_cls'])
    with pytest.raises(ConfigError, match='set model.classes'):
        inherit(*pair(transformer('DETR'), transformer('DETR')), ['bbox_head'])
    other = pair(transformer('DETR', queries=5), transformer('DETR', queries=8))
    with pytest.raises(ConfigError, match='0 tensors.*query_embedding.weight'):
        inherit(*other, ['query_embedding'])


# ------------------------------------------------------------------------------ in a training


@pytest.fixture
def config(tmp_path):
    """A DETR student of two of the teacher's three classes, without distillation losses."""
    teacher = transformer('DETR', classes=3)
    checkpoint = save_teacher(tmp_path / 'teacher.pth', teacher)
    data = write_coco(tmp_path / 'data')
    model = dict(
        type='Distiller',
        student=transformer('DETR', classes=2),
        teacher=dict(config=dict(model=teacher), checkpoint=str(checkpoint)),
        init_student=dict(from_teacher=[*EVERYTHING, 'query_embedding']),
    )
    cfg = training_config(model, data, tmp_path / 'work', iters=2)
    for mode in ('train', 'val', 'test'):
        cfg[f'{mode}_dataloader'].dataset.metainfo = dict(classes=('cat', 'person'))
    cfg.optim_wrapper.optimizer = dict(type='AdamW', lr=0.0)
    return cfg


def test_a_training_starts_from_the_teachers_weights(config):
    """The classes are those of its data; the teacher is not kept where no loss needs it."""
    runner = train(config)
    model = runner.model
    theirs = torch.load(config.model.teacher.checkpoint)['state_dict']
    assert torch.equal(model.bbox_head.fc_cls.weight, theirs['bbox_head.fc_cls.weight'][[0, 2, 3]])
    key = 'decoder.layers.0.ffn.layers.1.weight'
    assert torch.equal(model.state_dict()[key], theirs[key])
    assert model.teacher is None


def test_a_checkpoint_that_is_loaded_wins(config, tmp_path):
    other = MODELS.build(transformer('DETR', classes=2))
    torch.save(dict(state_dict=other.state_dict()), tmp_path / 'other.pth')
    config.load_from = str(tmp_path / 'other.pth')
    model = train(config).model
    assert torch.equal(model.bbox_head.fc_cls.weight, other.bbox_head.fc_cls.weight)


def test_what_was_copied_is_told(config, monkeypatch):
    said = []
    monkeypatch.setattr(MMLogger, 'info', lambda self, text, *_: said.append(str(text)))
    model = MODELS.build(dict(config.model, classes=('cat', 'person')))
    model.init_weights()
    (line,) = [text for text in said if text.startswith('init_student')]
    assert 'M weights) copied, all that init_student.from_teacher names' in line
    assert model.teacher is None
    losses = model(**model.data_preprocessor(batch_of_two(), True), mode='loss')
    assert not any('kd' in name for name in losses)


def test_classes_need_not_be_the_teachers_where_no_classifier_is_inherited(config):
    """Nor even known."""
    for classes in (('unicorn', 'dragon'), None):
        start = dict(from_teacher=['encoder', 'query_embedding'])
        model = MODELS.build(dict(config.model, classes=classes, init_student=start))
        model.init_weights()
        theirs = torch.load(config.model.teacher.checkpoint)['state_dict']
        assert torch.equal(model.query_embedding.weight, theirs['query_embedding.weight'])
    model = MODELS.build(config.model)
    with pytest.raises(ConfigError, match="must be the student's class names, .*set model.classes"):
        model.init_weights()


def batch_of_two():
    data = batch()
    for sample in data['data_samples']:
        sample.gt_instances.labels = sample.gt_instances.labels.clamp(max=1)
    return data


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            dict(init_student=dict(from_techer=['encoder'])),
            'init_student.from_techer: init_student has no such option; near',
        ),
        (dict(init_student=dict(from_teacher='encoder')), 'must be a list'),
        (
            dict(init_student=dict(from_teacher=['encoder']), teacher=None),
            'teacher: not given, but init_student needs one',
        ),
    ],
)
def test_a_wrong_declaration_is_refused(config, options, message):
    with pytest.raises(ConfigError, match=message):
        MODELS.build({**config.model, **options})
