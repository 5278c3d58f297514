"""Check that a training run has objects to learn from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ..errors import ConfigError, UserError
from .advice import Advice
from .annotations import AnnotatedData
from .boxes import MAX_NAMES, first_few
from .classes import join_names
from .planned_run import PlannedRun


def check_references(run: PlannedRun) -> Iterator[UserError | Advice]:
    """Annotations refer to images and categories of their file, and each image is listed once."""
    for data in run.data:
        for key, name in (('image_id', 'images'), ('category_id', 'categories')):
            if data.coco is not None and data.coco[name]:
                yield from _check_dangling(data, data.coco['annotations'], key, data.coco[name])
        counts = Counter(str(image.get('img_path')) for image in data.images)
        again = [path for path, count in counts.items() if count > 1]
        if again:
            yield Advice(
                f'{data.key}: {data.path} lists {len(again)} of {len(counts)} images more than once: '
                f'{first_few(again[:MAX_NAMES], len(again))}; each entry has only its own annotations; '
                f'merge the entries'
            )


def _check_dangling(
    data: AnnotatedData, annotations: list[dict], key: str, owners: list[dict]
) -> Iterator[UserError | Advice]:
    """Report annotations whose ``key`` refers to no entry of ``owners``."""
    known = {each['id'] for each in owners}
    lost = [each for each in annotations if each[key] not in known]
    if not lost:
        return
    value, every = lost[0][key], len(lost) == len(annotations)
    alike = next((each for each in known if str(each) == str(value)), None)
    how = 'they are ignored'
    if alike is not None:
        how = f'the file has {alike!r} of type {type(alike).__name__}; use one type'
    elif every:
        how = 'name the annotation file of these images'
    kind = ConfigError if every else Advice
    yield kind(
        f'{data.key}: {data.path} has {len(lost)} of {len(annotations)} annotations with an unknown {key} '
        f'(the first: id {lost[0]["id"]}, {key} {value!r}); {how}'
    )


def check_objects(run: PlannedRun) -> Iterator[UserError | Advice]:
    """Data sets keep images after their filter, and training images contain objects."""
    yield from _check_evaluated(run)
    trained = [data for data in run.data if data.mode == 'train' and not data.in_test_mode]
    labelled = [data for data in trained if any(map(_shows_objects, data.images))]
    for data in trained:
        if not data.images:
            yield ConfigError(
                f'{data.key}.ann_file: {data.path} lists no images; name another file'
            )
            continue
        if data not in labelled and run.needs_labels and not data.is_unlabelled:
            message = (
                f'{data.key}: no image of {data.path} contains {join_names(data.classes or ())}; choose '
                f'classes of that file, or another ann_file'
            )
            if any(image.get('instances') for image in data.images):
                message = (
                    f'{data.key}: all objects of {data.path} are marked as crowds (iscrowd) or difficult, '
                    f'so none is used for training; remove these flags'
                )
            if labelled and data.kept:  # a data set of negatives beside others
                yield Advice(message)
            else:
                yield ConfigError(message)
            continue
        if data.kept:
            continue
        yield _all_filtered_out(data)


def _check_evaluated(run: PlannedRun) -> Iterator[UserError | Advice]:
    """Check the data sets of evaluation; metrics count objects of filtered images as missed."""
    for data in run.data:
        if data.mode == 'train':
            continue
        if data.images and not data.kept:
            yield _all_filtered_out(data)
        elif not data.images:
            yield ConfigError(
                f'{data.key}.ann_file: {data.path} lists no images; name another file'
            )
        elif len(data.kept) < len(data.images) and not data.config.get('indices'):
            yield Advice(
                f'{data.key}.test_mode: filter_cfg removes {len(data.images) - len(data.kept)} of '
                f'{len(data.images)} images, and a metric may count their objects as missed; write '
                f'test_mode=True'
            )
        elif data.mode == 'val' and not any(map(_shows_objects, data.images)):
            yield Advice(
                f'{data.key}: no image of {data.path} contains {join_names(data.classes or ())}, so accuracy '
                f'cannot be measured; name another ann_file'
            )


def _all_filtered_out(data: AnnotatedData) -> ConfigError:
    """The error for a data set whose filter removes every image."""
    smallest = (data.config.get('filter_cfg') or {}).get('min_size', 0)
    sides = [min(image['width'], image['height']) for image in data.images]
    key = f'{data.key}.filter_cfg'
    if max(sides) < smallest:
        return ConfigError(
            f'{key}.min_size: must be at most {max(sides)} px, the shorter side of the largest image, got '
            f'{smallest}; {min(sides)} keeps all images'
        )
    return ConfigError(f'{key}: removes all {len(data.images)} images; remove it')


def check_iterations(run: PlannedRun) -> Iterator[UserError | Advice]:
    """An epoch has at least one iteration."""
    loader = run.cfg.get('train_dataloader') or {}
    loop = dict(run.cfg.get('train_cfg') or {})
    by_epoch = loop.get('by_epoch', 'max_iters' not in loop)
    size = loader.get('batch_size')
    datasets = [data for data in run.data if data.mode == 'train']
    if not (by_epoch and loader.get('drop_last') and size) or len(datasets) != 1:
        return
    (data,) = datasets
    # Not with a wrapper, which may repeat its data set.
    if data.key == 'train_dataloader.dataset' and 0 < len(data.kept) < size:
        yield ConfigError(
            f'train_dataloader.batch_size: must be at most {len(data.kept)}, the number of images, with '
            f'drop_last=True, got {size}; set drop_last=False or a smaller batch_size'
        )


def _shows_objects(image: dict) -> bool:
    return any(not each.get('ignore_flag') for each in image.get('instances', ()))
