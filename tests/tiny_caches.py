"""Caches of small teachers, and views of the images they were written of."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.logging import MessageHub
from mmengine.registry import DefaultScope
from tiny_models import CLASSES, save_teacher
from torch import Tensor, nn

from mmkd.cache.files import CacheWriter
from mmkd.cache.writing import cache_identity
from mmkd.distillers import Distiller
from mmkd.distillers.teacher_outputs import TeacherOutputs


def distiller(
    student: dict, teacher: dict, losses: dict, class_names: tuple[str, ...] = CLASSES, **more
) -> Distiller:
    """A distiller, ready to train.

    Args:
        student: Its config.
        teacher: Arguments of the teacher.
        losses: Entries.
        class_names: The student's.
        more: Other arguments.
    """
    config = dict(student=student, teacher=teacher, losses=losses, classes=class_names, **more)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(dict(type='Distiller', **copy.deepcopy(config)))
    model.init_weights()
    model.prepare()
    return model


def write(live: Distiller, teacher: dict, folder: Path, raw: dict, **options) -> Path:
    """Write a cache of one batch, each image on its own."""
    keeper = TeacherOutputs(live, 'teacher', **options)
    kept = {}
    for one in single(raw):
        kept.update(keeper.extract_batch(one))
    writer = CacheWriter(folder, cache_identity(keeper, teacher, list(kept)))
    for name, fields in kept.items():
        writer.add(name, fields)
    writer.finish()
    return folder


def both(
    folder: Path,
    student: dict,
    model: dict,
    losses: dict,
    raw: dict,
    symmetric: bool = False,
    num_priors: int | None = None,
    change: Callable[[dict], None] | None = None,
    **options,
) -> tuple[Distiller, Distiller]:
    """A distiller with its teacher at hand, and one with a cache of what it says of a batch.

    Args:
        folder: Where checkpoint and cache go.
        student: Its config.
        model: The teacher's.
        losses: Entries.
        raw: The batch.
        symmetric: As of :func:`teacher_of`.
        num_priors: How many priors are kept; all by default.
        change: What changes the teacher's weights.
        options: Of the teacher.
    """
    teacher = teacher_of(folder / 'teacher.pth', model, symmetric, **options)
    if change:
        content = torch.load(folder / 'teacher.pth')
        change(content['state_dict'])
        torch.save(content, folder / 'teacher.pth')
    live = distiller(student, teacher, losses)
    write(live, teacher, folder / 'cache', raw, num_priors=num_priors or 1_000_000)
    return live, distiller(student, dict(teacher, cache=str(folder / 'cache')), losses)


def single(raw: dict) -> list[dict]:
    """The images of a batch as batches of one."""
    return [
        dict(inputs=[image], data_samples=[copy.deepcopy(sample)])
        for image, sample in zip(raw['inputs'], raw['data_samples'], strict=True)
    ]


def teacher_of(path: Path, model: dict, symmetric: bool = False, **options) -> dict:
    """Write a checkpoint of a model config, and give the arguments of its teacher.

    Args:
        path: Where to.
        model: The config.
        symmetric: Whether convolutions are the same from left to right, so that the maps of a flipped
            image are the flipped maps, as far as strides allow.
        options: Further arguments of the teacher.
    """
    save_teacher(path, model)
    if symmetric:
        content = torch.load(path)
        for value in content['state_dict'].values():
            if value.dim() == 4:
                value.copy_((value + value.flip(-1)) / 2)
        torch.save(content, path)
    return dict(config=dict(model=model), checkpoint=str(path), **options)


def view(
    raw: dict,
    flip: bool = False,
    crop: tuple[int, int, int, int] | None = None,
    scale: float = 1.0,
) -> dict:
    """The images of a batch as a training pipeline shows them, with how it was done written down.

    Args:
        raw: The batch.
        flip: Whether from left to right.
        crop: Left, top, right, bottom, after the flip.
        scale: Factor of width and height, at the end.
    """
    images, samples = [], []
    for image, sample in zip(raw['inputs'], raw['data_samples'], strict=True):
        matrix = torch.eye(3, dtype=torch.float64)
        boxes = sample.gt_instances.bboxes.clone()
        if flip:
            image = image.flip(-1)
            width = image.shape[-1]
            matrix = torch.tensor([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]]).double() @ matrix
            boxes = boxes[:, [2, 1, 0, 3]] * boxes.new_tensor([-1, 1, -1, 1]) + boxes.new_tensor(
                [width, 0, width, 0]
            )
        if crop:
            left, top, right, bottom = crop
            image = image[:, top:bottom, left:right]
            matrix = torch.tensor([[1.0, 0, -left], [0, 1, -top], [0, 0, 1]]).double() @ matrix
            boxes = boxes - boxes.new_tensor([left, top, left, top])
        if scale != 1:
            image = nn.functional.interpolate(image[None].float(), scale_factor=scale)[0]
            matrix = torch.diag(torch.tensor([scale, scale, 1.0])).double() @ matrix
            boxes = boxes * scale
        new = DetDataSample(
            metainfo=dict(
                sample.metainfo,
                img_shape=tuple(image.shape[1:]),
                ori_shape=sample.ori_shape,
                homography_matrix=matrix.numpy(),
            )
        )
        new.gt_instances = copy.deepcopy(sample.gt_instances)
        new.gt_instances.bboxes = boxes
        new.ignored_instances = copy.deepcopy(sample.ignored_instances)
        images.append(image.to(torch.uint8).contiguous())
        samples.append(new)
    return dict(inputs=images, data_samples=samples)


def answers(model: Distiller, raw: dict) -> tuple[dict, dict]:
    """What the teacher of a distiller says of a batch: by source, and what it shares."""
    data = model.data_preprocessor(copy.deepcopy(raw), True)
    record = model._recorders_of(tuple(model.entries))
    (run,) = record.passes  # which reads nothing of the student
    with torch.no_grad():
        run.run_teacher(**data, preprocessor=model.data_preprocessor, student=record.student)
    joint = run.joint_recorders[1] if run.joint_recorders else run.recorder
    said = {}
    for entry in model.entries.values():
        for source in entry.teacher_sources('teacher'):
            said[source] = joint[source] if source in joint else run.recorder[source]
    shared = dict(run.shared)
    record.clear()
    return said, shared


def losses_of(model: Distiller, raw: dict, seed: int = 0) -> dict[str, Tensor]:
    """The distillation losses of a step on a batch."""
    data = model.data_preprocessor(copy.deepcopy(raw), True)
    MessageHub.get_current_instance().update_info('epoch', 0)  # TOOD's first losses depend on it
    torch.manual_seed(seed)
    losses = model(**data, mode='loss')
    return {name: losses[name] for name in model.entries}
