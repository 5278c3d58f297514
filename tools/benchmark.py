"""Measure the cost of distillation compared to plain training: time and memory of a training step.

One process measures in turns the step of the plain student, the forward pass of the teacher, and the
distillation step: forward and backward, without optimizer, data loading and preprocessing. All losses are
active, independent of their schedules. The default is random images, which need no data.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from _cli import load_config, make_parser, run_tool, warn

if TYPE_CHECKING:
    from mmengine.config import Config

    from mmkd.distillers import Distiller

TITLES = dict(student_step='student step', teacher_pass='teacher pass', kd_step='distillation step')


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument('--batch-size', type=int, help="images per step (default: the config's)")
    parser.add_argument(
        '--size',
        type=int,
        nargs='+',
        metavar='PX',
        help='size of the random images: one side, or height and width (default: 640)',
    )
    parser.add_argument('--data', action='store_true', help='use the training data of the config')
    parser.add_argument(
        '--random-teacher',
        action='store_true',
        help="random weights instead of the teacher's checkpoint; the speed is the same, except with "
        "teacher.proposals='teacher', as the number of proposals differs",
    )
    parser.add_argument(
        '--cached',
        action='store_true',
        help='first write a cache of the teacher for these images, and measure with the cache',
    )
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument('--iterations', type=int, default=10, help='measured rounds (default: 10)')
    parser.add_argument('--warmup', type=int, default=3, help='rounds before (default: 3)')
    parser.add_argument(
        '--threads', type=int, help="number of torch threads on the CPU (default: torch's)"
    )
    parser.add_argument('--json', metavar='FILE', help='write the numbers to a JSON file too')
    return parser.parse_args()


def benchmark(args: argparse.Namespace) -> None:
    import torch
    from mmengine.device import get_device
    from mmengine.logging import MMLogger
    from mmengine.registry import init_default_scope

    from mmkd.analysis.training_cost import measure

    check_options(args)
    cfg = load_config(args, modes=())
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    MMLogger.get_current_instance().setLevel('WARNING')  # mmengine logs each initialised weight
    torch.manual_seed(0)
    if args.threads:
        torch.set_num_threads(args.threads)
    with TemporaryDirectory() as folder:
        distiller, batches = build(cfg, args, folder)
        cost = measure(distiller.to(get_device()), batches, args.iterations, args.warmup, args.amp)
    images = batches[0]['inputs']
    numbers = dataclasses.asdict(cost) | dict(
        overhead_ratio=cost.overhead_ratio,
        overhead_quartiles=cost.overhead_quartiles,
        step_ratio=cost.step_ratio,
        memory_ratio=cost.memory_ratio,
        shares=cost.shares,
        batch_size=len(images),
        size=[max(image.shape[axis] for image in images) for axis in (1, 2)],
        device=str(get_device()),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        arguments=vars(args),
    )
    print(table(numbers))
    if args.json:
        Path(args.json).write_text(json.dumps(numbers, indent=2) + '\n', encoding='utf-8')


def check_options(args: argparse.Namespace) -> None:
    """Reject invalid options before anything is built."""
    import torch

    from mmkd.errors import ConfigError

    for name, least in dict(iterations=1, warmup=0, batch_size=1, threads=1).items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise ConfigError(f'--{name.replace("_", "-")}: must be at least {least}, got {value}')
    if args.size and args.data:
        raise ConfigError(
            "--size: cannot be combined with --data, as the config's pipeline sets the size; remove one"
        )
    if args.size and (len(args.size) > 2 or min(args.size) < 32):
        raise ConfigError(
            f'--size: must be one side, or height and width, of at least 32 px, got {args.size}'
        )
    if args.launcher != 'none':
        raise ConfigError('--launcher: benchmark measures a single process; remove --launcher')
    if args.amp and not torch.cuda.is_available():
        raise ConfigError('--amp: needs a CUDA device, as in training; remove --amp')
    if args.json and not Path(args.json).absolute().parent.is_dir():
        raise ConfigError(f'--json: no such folder: {Path(args.json).parent}; name another file')


def build(cfg: Config, args: argparse.Namespace, folder: str) -> tuple[Distiller, list[dict]]:
    """Build the distiller without pretrained weights and loss schedules, and batches.

    Args:
        cfg: The config.
        args: Options.
        folder: A temporary folder for weights and caches.
    """
    from mmdet.registry import MODELS

    from mmkd.building import without_pretrained
    from mmkd.errors import ConfigError
    from mmkd.preflight import PlannedRun, require
    from mmkd.teachers.config import config_classes

    if (cfg.get('model') or {}).get('type') != 'Distiller':
        raise ConfigError(
            f'{args.config}: model.type must be Distiller, got {(cfg.get("model") or {}).get("type")}; name '
            f'the config of a distillation'
        )
    cfg.model.classes = cfg.model.get('classes') or config_classes(cfg)
    cfg.model.student = without_pretrained(cfg.model.student)
    for entry in filter(None, (cfg.model.get('losses') or {}).values()):
        entry.pop('schedule', None)
        if not isinstance(entry.get('loss_weight', 1), (int, float)):
            entry.loss_weight = 1.0  # weights are measured only in the first steps of a run
    teachers = {'teacher': cfg.model.get('teacher'), **(cfg.model.get('teachers') or {})}
    teachers = {name: teacher for name, teacher in teachers.items() if teacher}
    for name, teacher in teachers.items():
        if 'config' in teacher and args.random_teacher:
            teacher.checkpoint = f'{folder}/{name}.pth'
            save_random_weights(teacher.config, teacher.checkpoint)
    written = {name for name, teacher in teachers.items() if teacher.get('cache')}
    if args.data:
        require(PlannedRun(cfg, ('train',), path=args.config), warn)
    elif written:  # an existing cache does not contain the random images
        args.cached = True
    if args.cached:
        for teacher in teachers.values():
            teacher.pop('cache', None)
    distiller = prepared(MODELS.build(copy.deepcopy(cfg.model)))
    if not args.data:
        batches = [noise(cfg, args, distiller)]
        if not args.cached:
            return distiller, batches
        cache(distiller, teachers, batches, folder)
        return prepared(MODELS.build(cfg.model)), [flipped(batch) for batch in batches]
    batches = training_data(cfg, args, distiller)
    if args.cached:
        cache(distiller, teachers, batches, folder)
        distiller = prepared(MODELS.build(cfg.model))
    return distiller, batches


def prepared(distiller: Distiller) -> Distiller:
    """The distiller, initialised and prepared for training."""
    distiller.init_weights()
    distiller.prepare()
    return distiller


def cache(distiller: Distiller, teachers: dict, batches: list[dict], folder: str) -> None:
    """Write caches of the teachers for the images of batches, and set them in the teachers' configs."""
    from mmkd.cache.files import CacheWriter
    from mmkd.cache.writing import cache_identity
    from mmkd.distillers.teacher_outputs import TeacherOutputs

    for name in distiller.teachers.used:
        teacher = teachers[name]
        if 'ema' in teacher:
            continue
        outputs = TeacherOutputs(distiller, name)
        kept = {}
        for batch in batches:
            for inputs, sample in zip(batch['inputs'], batch['data_samples'], strict=True):
                kept.update(outputs.extract_batch(dict(inputs=[inputs], data_samples=[sample])))
        writer = CacheWriter(f'{folder}/{name}', cache_identity(outputs, teacher, list(kept)))
        for image, fields in kept.items():
            writer.add(image, fields)
        writer.finish()
        teacher.cache = f'{folder}/{name}'


def flipped(batch: dict) -> dict:
    """The batch, flipped horizontally, so that cached outputs must be transformed."""
    import torch

    from mmkd.cache.views import HOMOGRAPHY

    for sample, image in zip(batch['data_samples'], batch['inputs'], strict=True):
        width = image.shape[-1]
        sample.set_metainfo(
            {HOMOGRAPHY: torch.tensor([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]]).numpy()}
        )
        boxes = sample.gt_instances.bboxes
        sample.gt_instances.bboxes = torch.stack(
            [width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], -1
        )
    return dict(batch, inputs=[image.flip(-1) for image in batch['inputs']])


def save_random_weights(config: str | dict, path: str) -> None:
    """Write a checkpoint with random weights for a teacher's config."""
    import torch

    from mmkd.building import build_random
    from mmkd.teachers.config import load_config as load_teacher_config

    cfg = load_teacher_config(config)
    scope = cfg.get('default_scope') or 'mmdet'
    detector = build_random(cfg.model, 'teacher.config', scope)
    torch.save(dict(state_dict=detector.state_dict()), path)


def noise(cfg: Config, args: argparse.Namespace, distiller: Distiller) -> dict:
    """A batch of random images with boxes of the student's classes."""
    from mmkd.analysis.training_cost import random_batch
    from mmkd.errors import ConfigError
    from mmkd.families import family_of

    if getattr(distiller.student, 'with_mask', False):
        raise ConfigError(
            '--data: must be given, as the student trains masks and random images have none'
        )
    classes = family_of(distiller.student).num_classes() or 1
    images = args.batch_size or cfg.train_dataloader.batch_size
    size = args.size or [640]
    return random_batch((size[0], size[-1]), images, classes)


def training_data(cfg: Config, args: argparse.Namespace, distiller: Distiller) -> list[dict]:
    """Batches of the config's training data, at most one per round."""
    from mmengine.runner import Runner

    from mmkd.cache.pipeline import record_views

    loader = dict(cfg.train_dataloader, num_workers=0, persistent_workers=False)
    loader['batch_size'] = args.batch_size or loader['batch_size']
    rounds = args.warmup + args.iterations
    loader = Runner.build_dataloader(loader, seed=0)
    if args.cached:
        record_views(loader.dataset, 'teacher', photometric=True)
    for teacher in distiller.teachers.values():
        teacher.prepare_data(loader.dataset)
    return list(itertools.islice(loader, rounds))


def table(numbers: dict[str, Any]) -> str:
    """The numbers as text."""
    height, width = numbers['size']
    rounds = len(numbers['rounds']['kd_step'])
    lines = [
        f'{numbers["batch_size"]} images of {height} x {width} on {numbers["device"]}, '
        f'{numbers["threads"]} threads, medians of {rounds} rounds',
        f'{"":<20}{"ms":>10}{"peak MB":>10}',
    ]
    for name, title in TITLES.items():
        milliseconds, megabytes = 1000 * numbers[f'{name}_s'], numbers['peak_memory_mb'][name]
        lines.append(f'{title:<20}{milliseconds:>10.1f}{megabytes:>10.0f}')
    for name, share in numbers['shares'].items():
        milliseconds = 1000 * numbers['losses_s'][name]
        lines.append(f'  {name:<18}{milliseconds:>10.1f}{share:>10.1%} of the distillation step')
    low, high = numbers['overhead_quartiles']
    lines.append(
        f'distillation step / (student step + teacher pass) = {numbers["overhead_ratio"]:.3f} '
        f'(quartiles over rounds: {low:.3f} to {high:.3f})'
    )
    lines.append(f'distillation step / student step = {numbers["step_ratio"]:.3f}')
    lines.append(
        f'peak memory / (student step + {numbers["teacher_weights_mb"]:.0f} MB of teacher weights + '
        f'{numbers["teacher_outputs_mb"]:.0f} MB of teacher outputs) = {numbers["memory_ratio"]:.3f}'
    )
    return '\n'.join(lines)


if __name__ == '__main__':
    # Silence torch's profiler, which measures memory on the CPU and logs each tensor older than itself.
    os.environ.setdefault('KINETO_LOG_LEVEL', '6')
    os.environ.setdefault('TORCH_CPP_LOG_LEVEL', 'ERROR')
    run_tool(benchmark, parse_args())
