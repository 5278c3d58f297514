"""mmkd/teachers/cached.py: training runs with stored outputs of a teacher."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import LOOPS, DefaultScope
from mmengine.runner import IterBasedTrainLoop
from tiny_caches import answers, both, distiller, losses_of, single, teacher_of, view, write
from tiny_dense import single_stage
from tiny_models import CLASSES, ROI_LOSSES, RPN_LOSSES, batch, faster_rcnn, feature_loss
from tiny_training import train, training_config, write_coco
from tiny_transformers import transformer
from torch import Tensor, nn

from mmkd.cache.files import MANIFEST
from mmkd.cache.pipeline import dataset_with_test_pipeline, pipeline_for_view, replace_pipeline
from mmkd.cache.writing import write_cache
from mmkd.distillers.teacher_outputs import TeacherOutputs
from mmkd.errors import CheckpointError, ConfigError, MissingFileError
from mmkd.teachers import CachedTeacher

LOSSES = dict(**ROI_LOSSES, **RPN_LOSSES, loss_kd_neck=feature_loss())
OPTIONS = dict(proposals='teacher', num_proposals=16)
RAW = batch((128, 160))


def entries(losses: dict = LOSSES, **schedule) -> dict:
    losses = copy.deepcopy(losses)
    for entry in losses.values():
        # Gentle, since the teacher is random.
        entry.update(schedule=dict(schedule), loss_weight=1e-3)
    return losses


def model_of(teacher: dict, losses: dict | None = None, **more) -> dict:
    losses = entries() if losses is None else losses
    return dict(type='Distiller', student=faster_rcnn(), teacher=teacher, losses=losses, **more)


def write_for(cfg: Config, folder: Path, **options):
    """Write the cache of a training's data, as the tool does."""
    model = copy.deepcopy(cfg.model)
    model['teacher'].pop('cache', None)
    keeper = TeacherOutputs(MODELS.build(dict(model, classes=CLASSES)), 'teacher', num_priors=16)
    cfg.test_dataloader.dataset.pipeline.pop(-2)  # no flip
    dataset = replace_pipeline(
        dataset_with_test_pipeline(cfg), lambda old: pipeline_for_view(old, [])
    )
    dataset = DATASETS.build(dataset)
    return write_cache(keeper, model['teacher'], dataset, folder, **options)


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    return write_coco(tmp_path_factory.mktemp('data') / 'coco', images=5)


@pytest.fixture(scope='module')
def teacher(tmp_path_factory) -> dict:
    path = tmp_path_factory.mktemp('teacher') / 'teacher.pth'
    return teacher_of(path, faster_rcnn(channels=24), **OPTIONS)


@pytest.fixture(scope='module')
def cache(data, teacher, tmp_path_factory) -> Path:
    """Of everything a Faster R-CNN can say of the data."""
    folder = tmp_path_factory.mktemp('cache') / 'cache'
    cfg = training_config(model_of(teacher), data, folder.parent / 'unused')
    with DefaultScope.overwrite_default_scope('mmdet'):
        written = write_for(cfg, folder, shard_images=2)
    assert (written.images, written.new) == (5, 5)
    return folder


def weights(runner) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in runner.model.state_dict().items()}


def logged(name: str) -> list[float]:
    hub = MessageHub.get_current_instance()
    return list(hub.get_scalar(f'train/{name}').data[0])


def test_a_training_needs_no_teacher(data, cache, tmp_path):
    """Its config and checkpoint are nowhere; what is trained is the student, by all losses."""
    cfg = training_config(model_of(dict(cache=str(cache))), data, tmp_path / 'work', iters=4)
    runner = train(cfg)
    for name in LOSSES:
        values = logged(name)
        assert len(values) == 4
        assert all(0 < value < float('inf') for value in values), name
    teacher = runner.model.teacher
    assert isinstance(teacher, CachedTeacher)
    assert all(weight.is_meta for weight in teacher.detector.parameters())
    plain = MODELS.build(faster_rcnn()).state_dict()
    assert list(weights(runner)) == list(plain)
    saved = torch.load(tmp_path / 'work/iter_4.pth', weights_only=False)
    assert list(saved['state_dict']) == list(plain)
    assert list(saved['distillation']) == ['connectors']


def test_a_training_that_crops_flips_resizes_and_recolours(data, cache, tmp_path):
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='RandomResize', scale=(128, 96), ratio_range=(0.8, 1.6), keep_ratio=True),
        dict(type='RandomCrop', crop_size=(64, 96), allow_negative_crop=True),
        dict(type='RandomFlip', prob=0.5, direction=['horizontal', 'vertical', 'diagonal']),
        dict(type='PhotoMetricDistortion'),
        dict(type='PackDetInputs'),
    ]
    config = dict(cache=str(cache))
    cfg = training_config(model_of(config), data, tmp_path / 'work', iters=4)
    cfg.train_dataloader.dataset.pipeline = pipeline
    with pytest.raises(ConfigError, match=r'^teacher\.cache: .*set teacher\.photometric=True'):
        train(copy.deepcopy(cfg))
    cfg.model.teacher.photometric = True
    train(cfg)
    for name in LOSSES:
        values = logged(name)
        assert len(values) == 4
        assert all(0 <= value < float('inf') for value in values), name
        assert any(values)


def test_losses_are_those_of_the_teacher_itself(data, teacher, cache, tmp_path):
    """Where the views are as it saw them, step by step."""
    found = []
    losses = entries(dict(ROI_LOSSES, loss_kd_neck=feature_loss()))
    for index, config in enumerate((teacher, dict(cache=str(cache)))):
        cfg = training_config(model_of(config, losses), data, tmp_path / str(index), iters=3)
        cfg.train_dataloader.dataset.pipeline.pop(-2)  # no flip
        MessageHub._instance_dict.clear()
        train(cfg)
        found.append({name: logged(name) for name in losses})
    for name, values in found[0].items():
        assert found[1][name] == pytest.approx(values, rel=0.02), name


def test_a_training_is_resumed(data, cache, tmp_path):
    """It reads the cache once more, and goes on with its connectors."""
    losses = entries(dict(loss_kd_neck=feature_loss()))
    for stop in (1, 3):
        cfg = training_config(
            model_of(dict(cache=str(cache)), losses), data, tmp_path / 'work', iters=stop
        )
        cfg.resume = stop == 3
        MessageHub._instance_dict.clear()
        runner = train(cfg)
        if stop == 1:
            before = {name: value.clone() for name, value in runner.model.connector_state().items()}
    assert runner.iter == 3
    assert len(logged('loss_kd_neck')) == 3
    after = runner.model.connector_state()
    for name, value in before.items():
        assert not torch.equal(after[name], value)
        torch.testing.assert_close(after[name], value, atol=0.05, rtol=0)


def test_off_is_plain_mmdet_bit_for_bit(data, cache, tmp_path):
    """With losses that have not begun, and with an EMA of the student, which copies it."""
    results = []
    hooks = [dict(type='EMAHook')]
    for index, model in enumerate(
        (faster_rcnn(), model_of(dict(cache=str(cache)), entries(begin=9, unit='iter')))
    ):
        cfg = training_config(model, data, tmp_path / str(index), iters=3, custom_hooks=hooks)
        results.append(weights(train(cfg)))
    plain, off = results
    assert list(plain) == list(off)
    assert all(torch.equal(plain[name], value) for name, value in off.items())


def test_copies_share_it(cache):
    model = distiller(faster_rcnn(), dict(cache=str(cache)), LOSSES)
    again = copy.deepcopy(model)
    assert again.teacher is model.teacher
    assert not any(parameter.is_meta for parameter in again.parameters())
    assert not any('teacher' in name for name in again.state_dict())


@LOOPS.register_module()
class EarlyLoop(IterBasedTrainLoop):
    """Starts the processes that load images when it is built, as in mmengine 0.10.7."""

    def __init__(self, runner, dataloader, **options) -> None:
        super().__init__(runner, dataloader, **options)
        self.dataloader_iterator._iterator = iter(self.dataloader)


def test_processes_that_load_images_tell_their_views(data, cache, tmp_path):
    losses = entries(dict(loss_kd=RPN_LOSSES['loss_kd_rpn_cls']))
    cfg = training_config(
        model_of(dict(cache=str(cache)), losses), data, tmp_path / 'work', iters=2
    )
    cfg.train_cfg.type = 'EarlyLoop'
    cfg.train_dataloader.num_workers = 1
    cfg.train_dataloader.persistent_workers = True
    runner = train(cfg)
    runner.train_loop.dataloader_iterator._iterator._shutdown_workers()


# ------------------------------------------------------------------ what is refused


def refused(
    cache: Path, match: str, losses: dict | None = None, student: dict | None = None, **how
):
    with pytest.raises(ConfigError, match=match):
        distiller(student or faster_rcnn(), dict(cache=str(cache), **how), losses or LOSSES)


def test_another_teacher_is_refused(cache, teacher, tmp_path):
    same = distiller(faster_rcnn(), dict(teacher, cache=str(cache)), LOSSES)
    assert same.teacher.classes == CLASSES
    other = teacher_of(tmp_path / 'other.pth', faster_rcnn(channels=24), symmetric=True)
    refused(
        cache,
        r'^teacher\.checkpoint: must be teacher\.pth, .*, got other weights .*other\.pth\); write the cache',
        checkpoint=other['checkpoint'],
    )
    # Another file under the same name; one that is not there, by its name.
    (tmp_path / 'more').mkdir()
    shutil.copy(other['checkpoint'], tmp_path / 'more' / 'teacher.pth')
    refused(cache, 'got other weights', checkpoint=str(tmp_path / 'more/teacher.pth'))
    refused(cache, 'got other weights', checkpoint='gone/best.pth')
    refused(cache, 'got other weights', checkpoint='https://example.org/a/best.pth')
    distiller(faster_rcnn(), dict(cache=str(cache), checkpoint='gone/teacher.pth'), LOSSES)
    # The same weights under another name.
    shutil.copy(teacher['checkpoint'], tmp_path / 'renamed.pth')
    distiller(
        faster_rcnn(), dict(cache=str(cache), checkpoint=str(tmp_path / 'renamed.pth')), LOSSES
    )
    refused(
        cache,
        r'^teacher\.config: differs from the config with which the cache .* was written',
        config=dict(model=faster_rcnn(channels=16)),
    )
    refused(cache, r'teacher\.classes: must be those of the cache', classes=['cat', 'dog', 'cow'])
    refused(cache, r'teacher\.classes: must be those of the cache', classes=CLASSES[::-1])


def test_other_options_are_refused(cache):
    for option, value in (
        ('num_proposals', 17),
        ('proposals', 'student'),
        ('scale', 2.0),
        ('amp', 'float16'),
        ('min_visibel', 0.5),
    ):
        refused(
            cache,
            rf'^teacher\.{option}: must be .*, with which the cache .* was written',
            **{option: value},
        )
    distiller(faster_rcnn(), dict(cache=str(cache), **OPTIONS), LOSSES)
    # What was meant anyway may be said.
    distiller(faster_rcnn(), dict(cache=str(cache), scale=1, compile=False, **OPTIONS), LOSSES)
    for value in (-0.1, 1.1):
        refused(cache, r'teacher\.min_visible: must be in \[0, 1\], got', min_visible=value)


def test_what_it_does_not_hold_is_refused(cache, teacher, data, tmp_path):
    cfg = training_config(model_of(teacher, entries(RPN_LOSSES)), data, tmp_path / 'unused')
    write_for(cfg, tmp_path / 'cache')
    folder = tmp_path / 'cache'
    refused(folder, 'does not contain maps, which the losses read', dict(loss_kd=feature_loss()))
    refused(folder, 'does not contain proposals', ROI_LOSSES)
    distiller(faster_rcnn(), dict(cache=str(folder)), dict(loss=RPN_LOSSES['loss_kd_rpn_cls']))
    refused(
        cache,
        'does not contain backbone.layer2, which',
        dict(loss_kd=dict(type='MSE', student='backbone.layer2', teacher='backbone.layer2')),
    )
    detr = transformer('DETR', layers=(1, 3))
    query = dict(type='KLDivergence', student='bbox_head', teacher='bbox_head')
    query['align'] = dict(type='HungarianQueryAlignment', layers='last')
    (tmp_path / 'detr').mkdir()
    both(tmp_path / 'detr', detr, detr, dict(loss_kd=query), RAW)
    folder = tmp_path / 'detr/cache'
    every = copy.deepcopy(query)
    every['align'].pop('layers')
    refused(folder, 'does not contain decoder layer 0, 1, which', dict(loss_kd=every), detr)


def test_other_classes_of_a_student_are_refused(tmp_path):
    """The priors that are kept are likeliest to show other things."""
    head = dict(student='bbox_head', teacher='bbox_head')
    align = dict(type='DenseClassAlignment')
    losses = dict(loss_kd=dict(head, type='KLDivergence', activation='sigmoid', align=align))
    both(tmp_path, single_stage('FCOS'), single_stage('FCOS'), losses, RAW)
    cache = dict(cache=str(tmp_path / 'cache'))
    student = single_stage('FCOS', classes=2)
    with pytest.raises(ConfigError, match='the top-scoring priors of the classes of this student'):
        distiller(student, cache, losses, ('cat', 'dog'))
    with pytest.raises(ConfigError, match='the teacher has no class for cow'):
        distiller(student, cache, losses, ('cat', 'cow'))


def test_other_data_are_refused(cache, tmp_path):
    """Images that it has not seen, before training; others of the same name, when they come."""
    config = model_of(dict(cache=str(cache)))
    more = write_coco(tmp_path / 'more', images=7)
    cfg = training_config(config, more, tmp_path / 'work')
    with pytest.raises(
        ConfigError, match=r'^teacher\.cache: .* lacks 2 images .*, such as 5 5\.png;'
    ):
        train(cfg)
    from PIL import Image

    other = write_coco(tmp_path / 'other', images=5)
    for path in (other / 'images').iterdir():
        Image.open(path).resize((128, 90)).save(path)
    annotations = other / 'annotations.json'
    annotations.write_text(annotations.read_text().replace('"height": 96', '"height": 90'))
    cfg = training_config(config, other, tmp_path / 'work')
    with pytest.raises(
        ConfigError, match=r'another data set: image .* had 96 x 128 pixels .* now has 90 x 128'
    ):
        train(cfg)


def test_pipelines_that_cannot_be_followed_are_refused_before_training(data, cache, tmp_path):
    cfg = training_config(model_of(dict(cache=str(cache))), data, tmp_path / 'work')
    cfg.train_dataloader.dataset.pipeline.insert(2, dict(type='Rotate'))
    with pytest.raises(ConfigError, match=r'^teacher\.cache: the training pipeline has Rotate'):
        train(cfg)
    cfg = training_config(model_of(dict(cache=str(cache))), data, tmp_path / 'work')
    resize = dict(type='BatchSyncRandomResize', random_size_range=(64, 128), size_divisor=32)
    cfg.model.student.data_preprocessor.batch_augments = [resize]
    with pytest.raises(ConfigError, match='BatchSyncRandomResize in batch_augments, which'):
        train(cfg)


def test_without_the_hook_views_are_not_known(data, cache, tmp_path):
    """Not silently taken for those of the image file."""
    cfg = training_config(
        model_of(dict(cache=str(cache)), entries(RPN_LOSSES)), data, tmp_path / 'w'
    )
    cfg.default_hooks.pop('distillation')
    cfg.train_dataloader.dataset.pipeline[-2].prob = 1.0
    cfg.model.classes = CLASSES
    with pytest.raises(ConfigError, match='train with DistillationHook, which adds it'):
        train(cfg)


def test_a_cache_that_is_absent_unfinished_or_damaged(cache, tmp_path):
    with pytest.raises(MissingFileError, match='has no cache of a teacher'):
        distiller(faster_rcnn(), dict(cache=str(tmp_path / 'gone')), LOSSES)
    copied = shutil.copytree(cache, tmp_path / 'cache')
    (copied / '00001.safetensors').unlink()
    with pytest.raises(MissingFileError, match=r'lacks its file 00001\.safetensors'):
        distiller(faster_rcnn(), dict(cache=str(copied)), LOSSES)
    (copied / MANIFEST).write_text('{}')
    with pytest.raises(CheckpointError, match='is damaged'):
        distiller(faster_rcnn(), dict(cache=str(copied)), LOSSES)


# ------------------------------------------------------------------ beside other things


def test_testing_needs_no_cache(tmp_path):
    model = MODELS.build(model_of(dict(cache=str(tmp_path / 'gone')))).eval()
    data = model.data_preprocessor(copy.deepcopy(RAW), False)
    with torch.no_grad():
        found = model(**data, mode='predict')
    assert len(found) == 2
    assert model.teacher is None


def test_a_cache_set_to_none_is_the_teacher_itself(teacher):
    """As a config's cache is dropped on the command line; what only a cache has goes with it."""
    dropped = dict(teacher, cache=None, min_visible=0.5, photometric=True)
    found = []
    for config in (dropped, teacher):
        torch.manual_seed(0)  # of the student
        model = MODELS.build(dict(model_of(config), classes=CLASSES))
        found.append(losses_of(model, RAW))
        assert not isinstance(model.teacher, CachedTeacher)
    assert found[0] == found[1]
    with pytest.raises(ConfigError, match='min_visible'):
        losses_of(MODELS.build(dict(model_of(dict(teacher, min_visible=0.5)))), RAW)


def test_what_a_student_starts_with_is_in_no_cache(cache, teacher, tmp_path):
    more = dict(init_student=dict(from_teacher=['backbone']))
    model = distiller(faster_rcnn(), dict(teacher, cache=str(cache)), LOSSES, **more)
    given = torch.load(teacher['checkpoint'])['state_dict']
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, given[f'backbone.{name}'])
    assert isinstance(model.teacher, CachedTeacher)  # the other is let go
    for options, absent in (
        (dict(), r'\.config and \.checkpoint'),
        (dict(config=teacher['config']), '.checkpoint'),
    ):
        with pytest.raises(
            ConfigError, match=f'init_student: needs weights, .* set teacher{absent}'
        ):
            distiller(faster_rcnn(), dict(options, cache=str(cache)), LOSSES, **more)


def test_two_caches_together(tmp_path):
    """The mean over two cached teachers is that over the two teachers."""
    head = dict(student='bbox_head', teacher='bbox_head')
    losses = dict(
        loss_kd=dict(
            head,
            type='KLDivergence',
            activation='sigmoid',
            align=dict(type='DenseClassAlignment'),
            teacher_name=dict(a=0.25, b=0.75),
        ),
        loss_kd_box=dict(
            head,
            type='GIoU',
            align=dict(type='DenseBoxAlignment'),
            teacher_name=dict(a=0.25, b=0.75),
        ),
    )
    config = single_stage('FCOS')
    teachers = {
        name: teacher_of(tmp_path / f'{name}.pth', config, symmetric=name == 'b') for name in 'ab'
    }
    live = distiller(config, None, losses, teachers=teachers)
    caches = {}
    for name, teacher in teachers.items():
        keeper = TeacherOutputs(live, name, num_priors=100_000)
        kept = {}
        for one in single(RAW):
            kept.update(keeper.extract_batch(one))
        from mmkd.cache.files import CacheWriter
        from mmkd.cache.writing import cache_identity

        writer = CacheWriter(tmp_path / name, cache_identity(keeper, teacher, list(kept)))
        for image, fields in kept.items():
            writer.add(image, fields)
        writer.finish()
        caches[name] = dict(cache=str(tmp_path / name))
    cached = distiller(config, None, losses, teachers=caches)
    mixed = distiller(config, None, losses, teachers=dict(teachers, b=caches['b']))
    one = single(RAW)[0]
    wanted = losses_of(live, one)
    for model in (cached, mixed):
        found = losses_of(model, one)
        for name, value in wanted.items():
            assert float(found[name]) == pytest.approx(float(value), rel=5e-3), name
    flipped = losses_of(cached, view(RAW, flip=True))
    assert all(torch.isfinite(value) for value in flipped.values())


def test_a_student_without_labels(cache):
    """Learns from what is in the cache alone."""
    model = distiller(faster_rcnn(), dict(cache=str(cache)), LOSSES, task_losses=False)
    raw = view(batch((96, 128)), flip=True)
    for index, sample in enumerate(raw['data_samples']):
        sample.set_metainfo(dict(img_path=f'{index}.png', ori_shape=(96, 128)))
        del sample.gt_instances
    found = model(**model.data_preprocessor(raw, True), mode='loss')
    assert set(found) == set(LOSSES)
    assert all(torch.isfinite(value) for value in found.values())


def test_losses_that_end_read_no_longer(cache):
    """Each set of active losses has what it reads."""
    losses = dict(entries(RPN_LOSSES), **entries(ROI_LOSSES, end=1, unit='iter'))
    model = distiller(faster_rcnn(), dict(cache=str(cache)), losses)
    hub = MessageHub.get_current_instance()
    for now, names in ((0, set(losses)), (1, set(RPN_LOSSES))):
        hub.update_info('iter', now)
        raw = view(batch((96, 128)), flip=True)
        for index, sample in enumerate(raw['data_samples']):
            sample.set_metainfo(dict(img_path=f'{index}.png', ori_shape=(96, 128)))
        data = model.data_preprocessor(raw, True)
        found = model(**data, mode='loss')
        assert {name for name in losses if name in found} == names


def test_what_is_read_is_let_go(cache):
    model = distiller(faster_rcnn(), dict(cache=str(cache)), LOSSES)
    raw = view(batch((96, 128)), flip=True)
    for index, sample in enumerate(raw['data_samples']):
        sample.set_metainfo(dict(img_path=f'{index}.png', ori_shape=(96, 128)))
    model(**model.data_preprocessor(raw, True), mode='loss')
    assert model.teacher.outputs == {}
    raw['data_samples'][0].set_metainfo(dict(img_id=99))
    with pytest.raises(ConfigError, match=r'does not contain image 99 0\.png'):
        model(**model.data_preprocessor(raw, True), mode='loss')
    assert model.teacher.outputs == {}


def test_buffers_of_heads_stay(tmp_path):
    """Constants that alignments read, e.g. the bins of distributions."""
    config = single_stage('GFL')
    head = dict(student='bbox_head', teacher='bbox_head')
    losses = dict(loss_kd=dict(head, type='GIoU', align=dict(type='DenseBoxAlignment')))
    _, cached = both(tmp_path, config, config, losses, RAW)
    bins = cached.teacher.detector.bbox_head.integral.project
    assert bins.tolist() == list(range(17))
    assert isinstance(cached.teacher.detector, nn.Module)
    answers(cached, RAW)


def test_a_config_survives_json(tmp_path):
    """Tuples stay tuples, which some models insist on."""
    model = faster_rcnn()
    model['backbone']['out_indices'] = (0, 1, 2, 3)
    model['rpn_head']['anchor_generator']['ratios'] = [0.5, 1.0, 2.0]
    teacher = teacher_of(tmp_path / 'teacher.pth', model)
    live = distiller(faster_rcnn(), teacher, RPN_LOSSES)
    folder = write(live, teacher, tmp_path / 'cache', RAW)
    said = json.loads((folder / MANIFEST).read_text())['identity']['teacher']
    assert said['checkpoint'] == 'teacher.pth'
    assert len(said['sha256']) == 64
    cached = distiller(faster_rcnn(), dict(teacher, cache=str(folder)), RPN_LOSSES)
    assert cached.teacher.detector.backbone.out_indices == (0, 1, 2, 3)
    model['backbone']['out_indices'] = [0, 1, 2, 3]
    refused(folder, 'teacher.config: differs', RPN_LOSSES, config=dict(model=model))
