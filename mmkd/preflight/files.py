"""Check that the data and the weights of a config exist.

Only the config is read, so a missing file is reported at once. URLs and files on other backends than the
local disk are assumed to exist.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mmengine.config import Config

from ..building import PRETRAINED
from ..checkpoints import hash_mismatch
from ..datasets.data_root import iter_leaves
from ..errors import ConfigError, MissingFileError, UserError
from ..teachers import TEACHER
from .advice import Advice

if TYPE_CHECKING:
    from .planned_run import PlannedRun

MAX_NAMES = 6
# Options in which wrappers of mmengine and mmdet keep the data sets inside.
INNER = ('dataset', 'datasets')
# File in the folder of every teacher cache, as in mmkd.cache.files, which is not imported for its name alone.
MANIFEST = 'cache.json'


# Pattern of a missing path, and how to get the data; the first match is used.
HOW_TO_GET = (
    (
        r'VOC2007',
        'download VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar from '
        'http://host.robots.ox.ac.uk/pascal/VOC/voc2007/ and unpack both with '
        '`mkdir -p data && tar -xf FILE -C data/`',
    ),
    (
        r'VOCdevkit|VOC2012',
        'download http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar and '
        'unpack it with `mkdir -p data && tar -xf VOCtrainval_11-May-2012.tar -C data/`',
    ),
    (r'work_dirs/demo', 'make it with `python tools/demo.py`'),
    (
        r'(^|/)coco/?$|(train|val)2017',
        'download http://images.cocodataset.org/zips/train2017.zip, '
        'http://images.cocodataset.org/zips/val2017.zip and '
        'http://images.cocodataset.org/annotations/annotations_trainval2017.zip and '
        'unpack each with `unzip FILE -d data/coco/`',
    ),
)


def check_data_files(run: PlannedRun) -> Iterator[UserError | Advice]:
    """The files and folders of the data sets and metrics exist."""
    for mode in run.modes:
        section = f'{mode}_dataloader'
        dataset = (run.cfg.get(section) or {}).get('dataset')
        yield from missing_files(run.cfg, dataset, f'{section}.dataset')
        section = f'{mode}_evaluator'
        for owner, key, path, where in iter_leaves(run.cfg.get(section), section):
            if key == 'ann_file' and isinstance(path, str) and not owner.get('backend_args'):
                yield from _missing_data(run.cfg, where, path, is_folder=False)


def missing_files(cfg: Config, dataset: Any, key: str) -> Iterator[UserError]:
    """The missing files and folders of a data set, each as an error with how to get it.

    Args:
        cfg: The whole config.
        dataset: The config of the data set or of its wrapper.
        key: Config key of the data set.
    """
    yield from _check_mmdet2_paths(dataset, key)
    missing: list[str] = []
    for where, path, is_folder in _dataset_files(dataset, key):
        if any(path.startswith(f'{folder.rstrip("/")}/') for folder in missing):
            continue  # inside a folder that is reported already
        for fault in _missing_data(cfg, where, path, is_folder):
            missing.append(path)
            yield fault


def check_checkpoint(path: str, what: str) -> None:
    """Check that a checkpoint exists.

    Args:
        path: A file, or a URL, which is assumed to exist.
        what: The option or key that names the checkpoint; the message starts with it.

    Raises:
        MissingFileError: The file does not exist; the message lists other checkpoints of its folder.
    """
    if _is_local(path) and not os.path.isfile(path):
        folder = os.path.dirname(path) or '.'
        others = (
            sorted(n for n in os.listdir(folder) if n.endswith('.pth'))
            if os.path.isdir(folder)
            else []
        )
        hint = (
            f'choose one of that folder: {", ".join(others)}'
            if others
            else 'training runs write checkpoints to their work directory'
        )
        raise MissingFileError(f'{what}: no such file: {path}; {hint}')


def _missing_data(cfg: Config, key: str, path: str, is_folder: bool) -> Iterator[MissingFileError]:
    if not _is_local(path) or os.path.isdir(path) or (not is_folder and os.path.isfile(path)):
        return
    hints = [hint for pattern, hint in HOW_TO_GET if re.search(pattern, path)]
    hint = hints[0] if hints else 'put the data into that folder'
    section, _, rest = key.rpartition('.dataset')
    if cfg.get('data_root'):
        option = 'data_root=PATH/'
    else:
        option = f'{section}.dataset.data_root=PATH/' if section else f'{rest or key}=FILE'
    kind = 'folder' if is_folder else 'file'
    yield MissingFileError(
        f'{key}: no such {kind}: {path}{_siblings(path)}; {hint}, or set another path with '
        f'--cfg-options {option}'
    )


def _siblings(path: str) -> str:
    """The content of the folder of a missing file, as a clause; empty if the folder is missing too."""
    folder = os.path.dirname(path.rstrip('/')) or '.'
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) and folder != '/' else []
    names = [name for name in names if not name.startswith('.')]
    more = ', …' if len(names) > MAX_NAMES else ''
    return f'; its folder contains {", ".join(names[:MAX_NAMES])}{more}' if names else ''


def _check_mmdet2_paths(dataset: Any, key: str) -> Iterator[ConfigError]:
    """Report paths in the format of MMDetection 2."""
    if not isinstance(dataset, dict):
        return
    prefix = dataset.get('data_prefix')
    if prefix is not None and not isinstance(prefix, dict):
        yield ConfigError(
            f'{key}.data_prefix: must be a dict of folders, got {prefix!r}; write dict(img={prefix!r})'
        )
    if isinstance(dataset.get('ann_file'), (list, tuple)):
        yield ConfigError(
            f'{key}.ann_file: must be one file, got {len(dataset["ann_file"])}; write one data set per file '
            f'and wrap them in a ConcatDataset'
        )
    for name, inner in inner_configs(dataset):
        yield from _check_mmdet2_paths(inner, f'{key}.{name}')


def inner_configs(dataset: dict) -> Iterator[tuple[str, Any]]:
    """The configs of the data sets inside a wrapper, each with its key; none for other data sets."""
    for name in INNER:
        inner = dataset.get(name)
        if isinstance(inner, (list, tuple)):
            yield from ((f'{name}.{index}', one) for index, one in enumerate(inner))
        elif inner:
            yield name, inner


def _dataset_files(dataset: Any, key: str) -> Iterator[tuple[str, str, bool]]:
    """``(config key, path, is a folder)`` of everything that a data set or those inside it read."""
    if not isinstance(dataset, dict):
        return
    for name, inner in inner_configs(dataset):
        yield from _dataset_files(inner, f'{key}.{name}')
    if dataset.get('backend_args'):
        return
    root = dataset.get('data_root') or ''
    if root:
        yield f'{key}.data_root', root, True
    if isinstance(dataset.get('ann_file'), str) and dataset['ann_file']:
        yield f'{key}.ann_file', _join(root, dataset['ann_file']), False
    prefixes = dataset.get('data_prefix')
    for name, prefix in prefixes.items() if isinstance(prefixes, dict) else ():
        if isinstance(prefix, str) and prefix:
            yield f'{key}.data_prefix.{name}', _join(root, prefix), True
            if name == 'sub_data_root':  # VOC format
                yield key, _join(root, prefix, dataset.get('img_subdir', 'JPEGImages')), True
                yield key, _join(root, prefix, dataset.get('ann_subdir', 'Annotations')), True


def check_weight_files(run: PlannedRun) -> Iterator[UserError | Advice]:
    """Pretrained weights, teachers and caches exist."""
    if not run.trains:
        return
    model = run.model_config
    yield from _check_distiller_types(run, model)
    for owner, key, path, where in iter_leaves(model, 'model'):
        pretrained = key == 'checkpoint' and owner.get('type') in PRETRAINED
        # A teacher's weights come from its own checkpoint, not from the init_cfg of its config.
        of_teacher = where.startswith(('model.teacher.', 'model.teachers.'))
        if pretrained and not of_teacher and not _exists(path):
            yield MissingFileError(
                f'{where}: no such file: {path}; name the pretrained weights with '
                f'--cfg-options {where}=FILE_OR_URL'
            )
        elif pretrained and not of_teacher:
            yield from _check_hash(path, where)
    source = (model.get('init_student') or {}).get('teacher_name', TEACHER)
    inherits = bool((model.get('init_student') or {}).get('from_teacher'))
    for key, teacher in read_teachers(model):
        needs_weights = inherits and key.rpartition('.')[2] == source
        yield from _missing_teacher_files(teacher, key, run.path, needs_weights)
        if not teacher.get('cache') or needs_weights:
            yield from _check_hash(teacher.get('checkpoint'), f'{key}.checkpoint')
    yield from _check_hash(run.cfg.get('load_from'), 'load_from')


def _check_distiller_types(run: PlannedRun, model: dict[str, Any]) -> Iterator[ConfigError]:
    """Report parts of a Distiller that are not dicts."""
    teachers = {f'teachers.{name}': one for name, one in (model.get('teachers') or {}).items()}
    forms = {
        'losses': (model.get('losses'), "dict(loss_kd=dict(type='KLDivergence', …))"),
        'student': (model.get('student'), 'the model config of a detector'),
        **{
            name: (teacher, 'dict(config=…, checkpoint=…)')
            for name, teacher in {'teacher': model.get('teacher'), **teachers}.items()
        },
    }
    for name, (value, form) in forms.items() if run.distils else ():
        absent = value is None and name == 'student'
        if absent or (value is not None and not isinstance(value, dict)):
            found = 'None' if absent else f'a {type(value).__name__}'
            yield ConfigError(f'model.{name}: must be a dict, got {found}; write {form}')


def _check_hash(path: Any, key: str) -> Iterator[Advice]:
    problem = hash_mismatch(path) if isinstance(path, str) else None
    if problem:
        yield Advice(
            f'{key}: {problem}; download it again, or remove the hash from its name if you wrote the file'
        )


def read_teachers(model: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The teachers that a loss or ``init_student`` uses, with their config keys.

    A distiller builds no other teachers.
    """
    named = set()
    losses = model.get('losses')
    for entry in losses.values() if isinstance(losses, dict) else ():
        if isinstance(entry, dict):
            names = entry.get('teacher_name') or TEACHER
            named |= {names} if isinstance(names, str) else set(names)
    init_student = model.get('init_student') or {}
    if init_student.get('from_teacher'):
        named.add(init_student.get('teacher_name', TEACHER))
    declared = {TEACHER: ('model.teacher', model.get('teacher'))}
    for name, teacher in (model.get('teachers') or {}).items():
        declared[name] = (f'model.teachers.{name}', teacher)
    for name, (key, teacher) in declared.items():
        if name in named and isinstance(teacher, dict):
            yield key, teacher


def _missing_teacher_files(
    teacher: dict[str, Any], key: str, config_path: str, needs_weights: bool
) -> Iterator[MissingFileError]:
    config, checkpoint = teacher.get('config'), teacher.get('checkpoint')
    cache = teacher.get('cache')
    if cache and not os.path.isfile(os.path.join(cache, MANIFEST)):
        yield MissingFileError(
            f'{key}.cache: no teacher cache in {cache}; write it with '
            f'`python -m mmkd cache_teacher {config_path}`, or train with the teacher itself: --cfg-options '
            f'{key}.cache=None'
        )
    if cache and not needs_weights:
        return
    of_a_file = isinstance(config, str) and '::' not in config
    if of_a_file and not _exists(config):
        where = f', named in {config_path}' if config_path else ''
        yield MissingFileError(
            f'{key}.config: no such file: {config}{where}; name an existing config'
        )
    if isinstance(checkpoint, str) and not _exists(checkpoint):
        train = (
            f'train the teacher with `mim train mmkd {os.path.relpath(str(config))}`, or '
            if of_a_file
            else ''
        )
        yield MissingFileError(
            f'{key}.checkpoint: no such file: {checkpoint}; {train}name its weights with '
            f'--cfg-options {key}.checkpoint=FILE_OR_URL'
        )


def _join(*parts: str) -> str:
    return os.path.join(*(part for part in parts if part))


def _is_local(path: str) -> bool:
    return '://' not in path


def _exists(path: Any) -> bool:
    return not isinstance(path, str) or not _is_local(path) or os.path.isfile(path)
