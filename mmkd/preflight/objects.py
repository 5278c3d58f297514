"""Whether a training run has objects to learn from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ..errors import ConfigError, UserError
from .advice import Advice
from .annotations import AnnotatedData
from .boxes import SHOWN, shown
from .classes import listed
from .planned_run import PlannedRun


def check_references(run: PlannedRun) -> Iterator[UserError | Advice]:
    """Annotations belong to images and categories that their file has, and each image is there once."""
    for data in run.data:
        for key, name in (('image_id', 'images'), ('category_id', 'categories')):
            if data.coco is not None and data.coco[name]:
                yield from _without_owner(data, data.coco['annotations'], key, data.coco[name])
        counts = Counter(str(image.get('img_path')) for image in data.images)
        again = [path for path, count in counts.items() if count > 1]
        if again:
            yield Advice(
                f'{data.key}: {data.path} lists {len(again)} of {len(counts)} images more than once: '
                f'{shown(again[:SHOWN], len(again))}; each entry counts with its own annotations alone'
            )


def _without_owner(
    data: AnnotatedData, annotations: list[dict], key: str, owners: list[dict]
) -> Iterator[UserError | Advice]:
    known = {each['id'] for each in owners}
    lost = [each for each in annotations if each[key] not in known]
    if not lost:
        return
    value, every = lost[0][key], len(lost) == len(annotations)
    alike = next((each for each in known if str(each) == str(value)), None)
    how = 'they are left out'
    if alike is not None:
        how = f'there is {alike!r}, of type {type(alike).__name__}; write both alike'
    elif every:
        how = 'name the file that they belong to'
    kind = ConfigError if every else Advice
    yield kind(
        f'{data.key}: {data.path} has {len(lost)} of {len(annotations)} annotations with the {key} of '
        f'nothing in it (the first: id {lost[0]["id"]}, {key} {value!r}); {how}'
    )


def check_objects(run: PlannedRun) -> Iterator[UserError | Advice]:
    """Data sets keep images after their filter, and some of those to train on show objects."""
    yield from _evaluated(run)
    trained = [data for data in run.data if data.mode == 'train' and not data.in_test_mode]
    labelled = [data for data in trained if any(map(_shows_objects, data.images))]
    for data in trained:
        if not data.images:
            yield ConfigError(f'{data.key}.ann_file: {data.path} lists no image')
            continue
        if data not in labelled and run.needs_labels and not data.is_unlabelled:
            shows = (
                f'{data.key}: no image of {data.path} shows {listed(data.classes or ())}; choose classes '
                f'that it has, or another ann_file'
            )
            if any(image.get('instances') for image in data.images):
                shows = (
                    f'{data.key}: all objects of {data.path} are marked as crowds (iscrowd) or difficult, '
                    f'and those are not learnt; unmark them'
                )
            if labelled and data.kept:  # images without objects beside others
                yield Advice(shows)
            else:
                yield ConfigError(shows)
            continue
        if data.kept:
            continue
        yield _keeps_none(data)


def _evaluated(run: PlannedRun) -> Iterator[UserError | Advice]:
    """The metrics count the objects of images that a filter leaves out as missed."""
    for data in run.data:
        if data.mode == 'train':
            continue
        if data.images and not data.kept:
            yield _keeps_none(data)
        elif not data.images:
            yield ConfigError(f'{data.key}.ann_file: {data.path} lists no image')
        elif len(data.kept) < len(data.images) and not data.config.get('indices'):
            yield Advice(
                f'{data.key}.test_mode: filter_cfg leaves out {len(data.images) - len(data.kept)} of '
                f'{len(data.images)} images, whose objects a metric may count as missed; write test_mode=True'
            )
        elif data.mode == 'val' and not any(map(_shows_objects, data.images)):
            yield Advice(
                f'{data.key}: no image of {data.path} shows {listed(data.classes or ())}, so that there is '
                f'nothing to measure'
            )


def _keeps_none(data: AnnotatedData) -> ConfigError:
    smallest = (data.config.get('filter_cfg') or {}).get('min_size', 0)
    sizes = [min(image['width'], image['height']) for image in data.images]
    cause = (
        f'all images are smaller: the shorter side is {max(sizes)} px at most; set it to '
        f'{min(sizes)} or less'
        if max(sizes) < smallest
        else f'it keeps none of {len(data.images)} images'
    )
    key = f'{data.key}.filter_cfg'
    return ConfigError(
        f'{key}.min_size={smallest}: {cause}' if smallest else f'{key}: {cause}; take it out'
    )


def check_iterations(run: PlannedRun) -> Iterator[UserError | Advice]:
    """An epoch has at least one iteration."""
    loader = run.cfg.get('train_dataloader') or {}
    loop = dict(run.cfg.get('train_cfg') or {})
    by_epoch = loop.get('by_epoch', 'max_iters' not in loop)
    size = loader.get('batch_size')
    leaves = [data for data in run.data if data.mode == 'train']
    # A wrapper may repeat its data set.
    if not (by_epoch and loader.get('drop_last') and size) or len(leaves) != 1:
        return
    (data,) = leaves
    if data.key == 'train_dataloader.dataset' and 0 < len(data.kept) < size:
        yield ConfigError(
            f'train_dataloader.batch_size: must be at most {len(data.kept)}, the number of images, with '
            f'drop_last=True, got {size}; set drop_last=False or a smaller batch_size'
        )


def _shows_objects(image: dict) -> bool:
    return any(not each.get('ignore_flag') for each in image.get('instances', ()))
