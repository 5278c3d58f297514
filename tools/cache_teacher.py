"""Write the outputs of a config's teacher for all training images to a cache, for any number of runs.

The teacher runs on each image of `train_dataloader` with the test pipeline. The cache contains the outputs
that the losses read: queries, proposals, the top-scoring priors, or feature maps. A training run with
`teacher=dict(cache=FOLDER)` then needs no teacher. An interrupted command continues where it stopped.
docs/cache.md lists what can be cached and how well a cache agrees with its teacher.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _cli import load_config, make_parser, run_tool, warn

if TYPE_CHECKING:
    from mmengine.config import Config

    from mmkd.distillers.teacher_outputs import TeacherOutputs


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument('--out', help="folder to write (default: the teacher's `cache`)")
    parser.add_argument(
        '--teacher', help='name of one of several teachers (default: the teacher with a cache)'
    )
    parser.add_argument(
        '--batch-size', type=int, default=1, help='images per forward pass (default: 1)'
    )
    parser.add_argument(
        '--num-workers', type=int, default=2, help='processes that load images (default: 2)'
    )
    parser.add_argument(
        '--num-priors',
        type=int,
        help='stored priors of a dense head per image (default: 256; of an RPN four times as many)',
    )
    parser.add_argument('--yes', action='store_true', help='write feature maps without asking')
    parser.add_argument(
        '--check',
        type=int,
        metavar='N',
        help='write nothing; compare the cache with the teacher on N images with several augmentations',
    )
    parser.add_argument(
        '--verify',
        action='store_true',
        help='write nothing; compare the files with their checksums',
    )
    return parser.parse_args()


def cache_teacher(args: argparse.Namespace) -> None:
    from mmdet.registry import DATASETS
    from mmengine.logging import MMLogger
    from mmengine.registry import init_default_scope

    from mmkd.cache.files import verify
    from mmkd.cache.pipeline import dataset_with_test_pipeline, pipeline_for_view, replace_pipeline
    from mmkd.cache.writing import write_cache
    from mmkd.datasets.loading import name_failing_images
    from mmkd.errors import ConfigError
    from mmkd.preflight.annotations import unwrapped_datasets

    check_options(args)
    cfg = load_config(args, modes=())
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    MMLogger.get_current_instance().setLevel('WARNING')
    name, config = chosen_teacher(cfg, args)
    folder = args.out or config.get('cache')
    if not folder:
        raise ConfigError(
            f'--out: must be a folder, got none; name one, or set {key_of(name)}.cache'
        )
    if args.verify:
        print(f'{folder}: {verify(folder)} images, all checksums match')
        return
    check_data_and_weights(cfg, args, name)
    outputs = build(cfg, args, name)
    dataset = dataset_with_test_pipeline(cfg)

    def views(view: list[dict]) -> Any:
        config = replace_pipeline(dataset, lambda pipeline: pipeline_for_view(pipeline, view))
        with redirect_stdout(StringIO()):  # pycocotools prints its progress
            built = DATASETS.build(config)
        for leaf in unwrapped_datasets(built):
            name_failing_images(leaf)
        return built

    if args.check:
        check(outputs, dict(config, cache=folder), args.check, views, name)
        return
    options = {key: value for key, value in config.items() if key != 'cache'}
    written = write_cache(
        outputs,
        options,
        views([]),
        folder,
        args.batch_size,
        args.num_workers,
        confirm=lambda images, size, large: confirm(folder, images, size, large and not args.yes),
        progress=show_progress,
    )
    if written is None:
        raise ConfigError('feature maps: not confirmed, so nothing was written; confirm with --yes')
    size = sum(path.stat().st_size for path in Path(folder).iterdir())
    print(f'{folder}: {written.images} images ({written.new} new), {format_size(size)}')
    if not config.get('cache'):
        print(f'train with --cfg-options model.{key_of(name)}.cache={folder}')


def check_options(args: argparse.Namespace) -> None:
    """Reject invalid options before anything is built."""
    from mmkd.errors import ConfigError

    for name, least in dict(batch_size=1, num_workers=0, num_priors=1, check=1).items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise ConfigError(f'--{name.replace("_", "-")}: must be at least {least}, got {value}')
    if args.launcher != 'none':
        raise ConfigError('--launcher: a single process writes the cache; remove --launcher')


def key_of(name: str) -> str:
    """The config key of a teacher."""
    return 'teacher' if name == 'teacher' else f'teachers.{name}'


def chosen_teacher(cfg: Config, args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The name and the config of the teacher to cache."""
    from mmkd.errors import ConfigError, did_you_mean

    model = cfg.get('model') or {}
    if model.get('type') != 'Distiller':
        raise ConfigError(
            f'{args.config}: model.type must be Distiller, got {model.get("type")}; name the config of a '
            f'distillation'
        )
    teachers = {'teacher': model.get('teacher'), **(model.get('teachers') or {})}
    teachers = {name: each for name, each in teachers.items() if each}
    cached = [name for name, each in teachers.items() if each.get('cache')]
    if args.teacher and args.teacher not in teachers:
        raise ConfigError(
            f'--teacher: must be a teacher of the config, got {args.teacher!r}'
            f'{did_you_mean(args.teacher, teachers)}'
        )
    if not teachers:
        raise ConfigError(f'{args.config}: must have a teacher, got none; set model.teacher')
    if not args.teacher and (len(cached) > 1 or not cached and len(teachers) > 1):
        raise ConfigError(
            f'--teacher: must be one of {", ".join(cached or teachers)}, got none; name one'
        )
    name = args.teacher or (cached or list(teachers))[0]
    config = teachers[name]
    if 'ema' in config:
        raise ConfigError(
            f'{key_of(name)}: cannot be cached, as it is the average of the student and changes during '
            f'training; name another with --teacher'
        )
    absent = [key for key in ('config', 'checkpoint') if not config.get(key)]
    if absent:
        raise ConfigError(
            f'{key_of(name)}.{absent[0]}: must be set to write a cache, got none; set it'
        )
    return name, config


def check_data_and_weights(cfg: Config, args: argparse.Namespace, name: str) -> None:
    """Check that the training images and the teacher's weights exist."""
    from mmengine.config import Config

    from mmkd.preflight import PlannedRun, require

    model = cfg.model
    teachers = {'teacher': model.get('teacher'), **(model.get('teachers') or {})}
    only = dict(cfg.to_dict(), train_cfg=cfg.get('train_cfg') or dict())
    only['model'] = dict(teacher=dict(teachers[name]), losses=dict(loss=dict()))
    only['model']['teacher'].pop('cache', None)
    # The student is not trained here, so its number of classes is not checked.
    checked = (
        'data files',
        'weight files',
        'teacher configs',
        'annotations',
        'objects',
        'image files',
    )
    require(PlannedRun(Config(only), ('train',), path=args.config), warn, only=checked)


def build(cfg: Config, args: argparse.Namespace, name: str) -> TeacherOutputs:
    """Build the live teacher, with a student of random weights, from which the losses select outputs."""
    from mmdet.registry import MODELS
    from mmengine.device import get_device

    from mmkd.cache.selection import NUM_PRIORS
    from mmkd.distillers.teacher_outputs import TeacherOutputs
    from mmkd.teachers.config import config_classes
    from mmkd.teachers.declared import CACHE_OPTIONS

    model = cfg.model
    model.classes = model.get('classes') or config_classes(cfg)
    model.init_student = None
    entries = {key: entry for key, entry in (model.get('losses') or {}).items() if entry}
    for entry in entries.values():
        entry.pop('schedule', None)
    model.losses = {key: entry for key, entry in entries.items() if reads(entry, name)}
    for teacher in [model.get('teacher'), *(model.get('teachers') or {}).values()]:
        for key in CACHE_OPTIONS:
            (teacher or {}).pop(key, None)
    return TeacherOutputs(MODELS.build(model).to(get_device()), name, args.num_priors or NUM_PRIORS)


def reads(entry: dict[str, Any], name: str) -> bool:
    """Whether a loss uses a teacher."""
    of = entry.get('teacher_name') or 'teacher'
    return name == of if isinstance(of, str) else name in of


def confirm(folder: str, images: int, size: int, ask: bool) -> bool:
    """Print the size of the cache; ask for confirmation if it is large. Returns whether to write."""
    from mmkd.errors import ConfigError

    whole = format_size(images * size)
    print(f'{images} images, about {format_size(size)} each: {whole} in {folder}', flush=True)
    if not ask:
        return True
    if not sys.stdin.isatty():
        raise ConfigError(
            f'feature maps: the losses read them, and they take {whole}; confirm with --yes'
        )
    return input('The losses read feature maps. Write them? [y/N] ').strip().lower() in ('y', 'yes')


def show_progress(batches: Any) -> Any:
    """Iterate over batches with a progress bar on a terminal."""
    from rich.progress import track

    return track(batches, 'running the teacher', disable=not sys.stdout.isatty())


def check(
    outputs: TeacherOutputs, config: dict[str, Any], images: int, views: Any, name: str
) -> None:
    """Print how well a cache agrees with its teacher."""
    from torch.utils.data import Subset

    from mmkd.analysis.cache_agreement import compare
    from mmkd.cache.pipeline import CHECKED_VIEWS
    from mmkd.teachers import CachedTeacher

    teacher = CachedTeacher(name=key_of(name), **config)
    print(f'{"view":<30}{"kept":<12}{"objects":>9}{"found":>9}{"IoU":>8}{"score":>8}{"cosine":>9}')
    for title, view in CHECKED_VIEWS.items():
        dataset = views(view)
        count = min(images, len(dataset))
        # Spread evenly, so that every call uses the same images.
        chosen = Subset(dataset, [len(dataset) * i // count for i in range(count)])
        for row in compare(outputs, teacher, chosen):
            numbers = f'{row.cosine:>43.3f}'
            if row.kind != 'maps':
                numbers = (
                    f'{row.detections:>9}{row.found:>9.1%}{row.iou:>8.3f}{row.difference:>8.3f}'
                )
            print(f'{title:<30}{row.kind:<12}{numbers}', flush=True)


def format_size(size: float) -> str:
    """A number of bytes with a unit."""
    for unit in ('B', 'kB', 'MB', 'GB'):
        if size < 1000:
            return f'{size:.3g} {unit}'
        size /= 1000
    return f'{size:.3g} TB'


if __name__ == '__main__':
    os.environ.setdefault('KINETO_LOG_LEVEL', '6')
    run_tool(cache_teacher, parse_args())
