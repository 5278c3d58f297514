"""More than one teacher, the student's own average among them."""

from __future__ import annotations

import copy

import pytest
import torch
from mmdet.registry import MODELS
from tiny_dense import single_stage
from tiny_models import CLASSES, ROI_LOSSES, batch, faster_rcnn, feature_loss, save_teacher
from tiny_training import train, training_config, write_coco

from mmkd.errors import ConfigError, MissingFileError
from mmkd.teachers import AveragedTeacher


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Checkpoints of a RetinaNet and three Faster R-CNN, of which one is like the student."""
    folder, found = tmp_path_factory.mktemp('teachers'), {}
    models = dict(
        first=faster_rcnn(channels=24),
        second=faster_rcnn(channels=20),
        dense=single_stage('RetinaNet', width=24),
        same=faster_rcnn(),
    )
    for seed, (name, model) in enumerate(models.items()):
        path = save_teacher(folder / f'{name}.pth', model, seed=seed)
        found[name] = dict(config=dict(model=model), checkpoint=str(path))
    return found


def make(losses, teacher=None, **options):
    model = dict(type='Distiller', student=faster_rcnn(), teacher=teacher, losses=losses)
    return MODELS.build(copy.deepcopy({**model, 'classes': CLASSES, **options})).train()


def step(model, seed=0):
    torch.manual_seed(seed)
    return model(**model.data_preprocessor(batch(), True), mode='loss')


def of(entry, teacher):
    return dict(entry, teacher_name=teacher)


CLASS, BOX = ROI_LOSSES.values()


def test_each_loss_has_its_teacher(files):
    """As if each stood alone; teachers may be of any kind."""
    losses = dict(
        loss_kd_first=CLASS,
        loss_kd_second=of(CLASS, 'second'),
        loss_kd_dense=of(feature_loss(16, 24), 'dense'),
    )
    teachers = dict(second=files['second'], dense=files['dense'])
    together = make(losses, files['first'], teachers=teachers)
    connector = together.connectors.state_dict()
    values = step(together)
    for name, teacher in (('first', 'first'), ('second', 'second'), ('dense', 'dense')):
        entry = dict(losses[f'loss_kd_{name}'], teacher_name='teacher')
        alone = make({f'loss_kd_{name}': entry}, files[teacher])
        alone.load_state_dict(together.state_dict())
        if name == 'dense':
            alone.connectors.load_state_dict(connector)
        value = step(alone)[f'loss_kd_{name}']
        assert torch.allclose(value, values[f'loss_kd_{name}'], rtol=1e-5), name
    assert list(together.teachers) == ['teacher', 'second', 'dense']
    names = [name for name, _ in together.named_parameters()]
    assert not any('teacher' in name for name in names)


def test_soft_targets_of_several_are_averaged(files):
    shares = dict(teacher=1.0, second=3.0)
    options = dict(teachers=dict(second=files['second']))
    losses = dict(loss_kd_cls=of(CLASS, shares), loss_kd_box=of(BOX, shares))
    model = make(losses, files['first'], **options)
    seen = {}
    for name, entry in model.entries.items():
        entry.loss.register_forward_hook(
            lambda _, args, __, name=name: seen.setdefault(name, args[1])
        )
    step(model)
    wanted = {}
    for share, file in ((0.25, 'first'), (0.75, 'second')):
        alone = make(dict(loss_kd_cls=CLASS, loss_kd_box=BOX), files[file])
        alone.load_state_dict(model.state_dict())
        for name, entry in alone.entries.items():
            entry.loss.register_forward_hook(
                lambda _, args, __, name=name, share=share: wanted.setdefault(name, []).append(
                    (share, args[1])
                )
            )
        step(alone)
    scores = sum(share * value.softmax(-1) for share, value in wanted['loss_kd_cls'])
    assert torch.allclose(seen['loss_kd_cls'].softmax(-1), scores, atol=1e-5)
    boxes = sum(share * value for share, value in wanted['loss_kd_box'])
    assert torch.allclose(seen['loss_kd_box'], boxes, atol=1e-5)


def test_a_teacher_that_no_loss_names_is_not_loaded(files):
    absent = dict(files['second'], checkpoint='no/such/file.pth')
    model = make(dict(loss_kd=CLASS), files['first'], teachers=dict(second=absent))
    step(model)
    assert list(model.teachers) == ['teacher']
    with pytest.raises(MissingFileError, match=r"teachers.second.checkpoint='no/such/file.pth'"):
        make(
            dict(loss_kd=of(CLASS, 'second')), files['first'], teachers=dict(second=absent)
        ).prepare()


@pytest.mark.parametrize(
    ('losses', 'options', 'message'),
    [
        (of(CLASS, 'secnd'), {}, "losses.loss_kd.teacher_name: must be one of the declared teachers teacher, second, got 'secnd'"),
        (of(CLASS, dict(teacher=0.5, second=0)), {}, 'a dict of weights above 0'),
        (of(CLASS, []), {}, 'teacher_name: must be the name of a teacher'),
        (of(dict(BOX, align=dict(type='RoIBoxAlignment', select='teacher')), dict(teacher=1, second=1)), {}, 'teacher_name: must name one teacher, because the rows of this RoIBoxAlignment depend'),
        (of(dict(feature_loss(), teacher_connector=feature_loss()['connector']), dict(teacher=1, second=1)), {}, 'teacher_connector: supports one teacher'),
        (CLASS, dict(teachers=dict(teacher=dict())), None),
        (CLASS, dict(init_student=dict(from_teacher=['neck'], teacher_name='x')), "init_student.teacher_name: must be one of .*, got 'x'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_says_why(files, losses, options, message):
    options = {'teachers': dict(second=files['second']), **options}
    if message is None:
        step(make(dict(loss_kd=losses), files['first'], **options))
        return
    with pytest.raises(ConfigError, match=message):
        step(make(dict(loss_kd=losses), files['first'], **options))


def test_the_student_inherits_from_the_teacher_it_names(files):
    options = dict(
        teachers=dict(second=files['same']),
        init_student=dict(from_teacher=['rpn_head'], teacher_name='second'),
    )
    model = make(dict(loss_kd=CLASS), files['first'], **options)
    model.init_weights()
    weights = torch.load(files['same']['checkpoint'], weights_only=False)
    own = model.state_dict()
    for name, value in weights['state_dict'].items():
        if name.startswith('rpn_head'):
            assert torch.equal(own[name], value)
    assert list(model.teachers) == ['teacher']  # the other one has done its part


# ------------------------------------------------------------------ the average of the student

AVERAGE = dict(ema=dict(type='ExponentialMovingAverage', momentum=0.25, update_buffers=True))


def test_the_students_average_teaches_it():
    model = make(dict(loss_kd=CLASS), AVERAGE)
    losses = step(model)
    teacher = model.teachers['teacher']
    assert isinstance(teacher, AveragedTeacher) and teacher.classes == CLASSES
    # Both are the same at first, but for the student's BatchNorm, which sees the batch.
    own = model.state_dict()
    assert all(
        torch.equal(value, own[k]) or 'running' in k or 'tracked' in k
        for k, value in teacher.detector.state_dict().items()
    )
    before = {k: v.clone() for k, v in teacher.detector.named_parameters()}
    losses['loss_kd'].backward()
    model.teachers.update_averages(model.student)  # the first takes the weights over
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter += 0.01
    model.teachers.update_averages(model.student)
    for name, parameter in teacher.detector.named_parameters():
        assert torch.allclose(parameter, before[name] + 0.0025, atol=1e-6), name
        assert not parameter.requires_grad and parameter.grad is None
    assert not any(module.training for module in teacher.detector.modules())
    model.train()
    assert not any(module.training for module in teacher.detector.modules())
    assert set(model.state_dict()) == set(MODELS.build(faster_rcnn()).state_dict())
    assert step(model, seed=1)['loss_kd'] > 0


def test_the_average_is_saved_beside_the_student_and_resumed(tmp_path):
    data = write_coco(tmp_path / 'coco')
    losses = dict(loss_kd=dict(CLASS, loss_weight=0.1))
    config = dict(type='Distiller', student=faster_rcnn(), teacher=AVERAGE, losses=losses)
    train(training_config(config, data, tmp_path / 'run', iters=2))
    checkpoint = torch.load(tmp_path / 'run' / 'iter_2.pth', weights_only=False)
    MODELS.build(faster_rcnn()).load_state_dict(checkpoint['state_dict'], strict=True)
    assert set(checkpoint['distillation']) == {'averages'}
    saved = checkpoint['distillation']['averages']['teacher']
    student = checkpoint['state_dict']
    assert any(not torch.equal(saved[f'module.{name}'], student[name]) for name in student)
    for iters in (2, 4):
        again = training_config(config, data, tmp_path / 'run', iters=iters)
        again.resume = True
        average = train(again).model.teachers['teacher'].average
        assert int(average.steps) == iters
        same = [torch.equal(value, saved[name]) for name, value in average.state_dict().items()]
        assert all(same) == (iters == 2)


def test_a_resume_without_the_average_is_refused(tmp_path):
    model = make(dict(loss_kd=CLASS), AVERAGE)
    with pytest.raises(
        ConfigError, match=r"has the averaged teachers \[\].*declares \['teacher'\]"
    ):
        model.teachers.load_average_state({})
    plain = make(dict(loss_kd=CLASS), dict(config=dict(model=faster_rcnn()), checkpoint='x'))
    plain.teachers.load_average_state({})
    with pytest.raises(ConfigError, match=r"has the averaged teachers \['teacher'\]"):
        plain.teachers.load_average_state(dict(teacher={}))


@pytest.mark.parametrize(
    ('ema', 'message'),
    [
        (dict(type='ExponentialMovingAverag'), 'teacher.ema: .*ExponentialMovingAverag'),
        (dict(momentun=0.1), 'teacher.ema: .*momentun'),
        (dict(momentum=2.0), 'teacher.ema: .*momentum'),
    ],
)
def test_a_wrong_average_says_why(ema, message):
    with pytest.raises(ConfigError, match=message):
        make(dict(loss_kd=CLASS), dict(ema=ema)).prepare()


def test_nothing_can_be_inherited_from_the_average():
    with pytest.raises(ConfigError, match='got the moving average of the student'):
        make(dict(loss_kd=CLASS), AVERAGE, init_student=dict(from_teacher=['neck']))
