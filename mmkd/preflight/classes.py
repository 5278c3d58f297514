"""Check that the class names of a config match the labels of its annotation files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from ..errors import ConfigError, UserError, did_you_mean
from .advice import Advice
from .annotations import AnnotatedData, normalize_name
from .planned_run import PlannedRun


def check_names(run: PlannedRun) -> Iterator[UserError | Advice]:
    """Class names are unique and are in `metainfo.classes`."""
    for data in run.data:
        key = f'{data.key}.metainfo'
        given = data.config.get('metainfo') or {}
        classes = data.classes
        for wrong in ('CLASSES', 'class_names', 'names'):
            if wrong in given and 'classes' not in given:
                yield ConfigError(f'{key}.{wrong}: the key must be classes, got {wrong}; rename it')
        if isinstance(classes, str):
            yield ConfigError(
                f'{key}.classes: must be a tuple of names, got the string {classes!r}; write '
                f"('{classes}',) with a comma"
            )
        elif classes is None and not data.takes_text:
            yield Advice(
                f'{key}.classes: {data.dataset_type.__name__} has no class names, so labels cannot be '
                f'checked; set it to a tuple of names'
            )
        elif classes is None:
            continue
        else:
            twice = [name for name, count in Counter(classes).items() if count > 1]
            others = [name for name in classes if not isinstance(name, str)]
            if others:
                yield ConfigError(
                    f'{key}.classes: names must be strings, got {others[0]!r}; quote it'
                )
            elif not classes and not data.takes_text:
                yield ConfigError(
                    f'{key}.classes: must name at least one class, got {classes!r}; add the names'
                )
            elif twice:
                yield ConfigError(f'{key}.classes: {twice[0]!r} is listed twice; remove one')


def check_labels(run: PlannedRun) -> Iterator[UserError | Advice]:
    """Each label index belongs to the class name at that index, and each class is in the files.

    ``CocoDataset`` numbers labels in the order of the annotation file, even if the names in the config
    have another order. A data set ignores names that are not in its files.
    """
    for data in run.data:
        classes = data.classes
        if isinstance(classes, str) or classes is None:
            continue
        yield from _check_order(data, tuple(classes))
        yield from _check_presence(data, tuple(classes))


def _check_order(data: AnnotatedData, classes: tuple[str, ...]) -> Iterator[UserError]:
    """Compare the class names with the names of the labels in the annotation file."""
    labelled = data.names_by_label()
    if labelled is None or tuple(labelled) == classes[: len(labelled)]:
        return
    key, path = f'{data.key}.metainfo.classes', data.path
    names = data.names_in_files() or []
    unknown = [name for name in classes if name not in names]
    if unknown:
        if 'classes' not in (data.config.get('metainfo') or {}):
            yield ConfigError(
                f'{key}: not given, so it defaults to the {len(classes)} classes of '
                f'{data.dataset_type.__name__}, but {path} has {join_names(names)}; set it to '
                f'{_as_tuple(names)}'
            )
        else:
            yield _unknown_class_error(data, unknown[0], classes, names)
        return
    twice = [name for name, count in Counter(labelled).items() if count > 1]
    if twice:
        yield ConfigError(
            f'{key}: {path} has {Counter(labelled)[twice[0]]} categories called {twice[0]!r} with different '
            f'labels; rename one in the file, or merge them'
        )
        return
    how = (
        ''
        if 'classes' in (data.config.get('metainfo') or {})
        else f' of {data.dataset_type.__name__}'
    )
    yield ConfigError(
        f'{key}: the order{how} is {_as_tuple(classes)}, but labels follow the order of {path}; '
        f'write {_as_tuple(labelled)}'
    )


def _check_presence(data: AnnotatedData, classes: tuple[str, ...]) -> Iterator[UserError | Advice]:
    """Find class names that are in no annotation file."""
    key = f'{data.key}.metainfo.classes'
    names = data.names_in_files()
    labelled = data.names_by_label()
    if names is None or (labelled is not None and tuple(labelled) != classes[: len(labelled)]):
        return  # nothing to compare with, or reported by _check_order
    absent = [name for name in classes if name not in names]
    unused = [name for name in names if name not in classes]
    meant = [name for name in absent if _spelling_variants(name, unused)]
    if not meant and len(absent) == len(classes):
        meant = [name for name in absent if did_you_mean(name, unused)]
    if meant:
        yield _unknown_class_error(data, meant[0], classes, names)
    elif absent and len(absent) == len(classes):
        yield ConfigError(
            f'{key}: {data.path} has none of {join_names(classes)}; choose from {join_names(names)}'
        )
    elif absent and not data.in_test_mode and data.is_read_whole:
        hint = did_you_mean(absent[0], unused)
        yield Advice(f'{key}: {data.path} has no object of {join_names(absent)}{hint}')
    for name in (name for name in classes if name in names):
        spelled = _spelling_variants(name, unused)
        if spelled:
            yield Advice(
                f'{key}: {data.path} has objects called {spelled[0]!r} as well as {name!r}; {spelled[0]!r} '
                f'is ignored; rename it in the file if both are the same class'
            )


def _unknown_class_error(
    data: AnnotatedData, name: str, classes: Sequence[str], names: list[str]
) -> UserError:
    unused = [each for each in names if each not in classes]
    alike = _spelling_variants(name, unused)
    hint = f'; write {alike[0]!r}' if alike else did_you_mean(name, unused or names)
    return ConfigError(
        f'{data.key}.metainfo.classes: {data.path} has no class {name!r}'
        f'{hint or f"; it has {join_names(names)}"}'
    )


def _spelling_variants(name: str, names: list[str]) -> list[str]:
    """The names that differ from ``name`` only in case, spaces, hyphens or underscores."""
    return [each for each in names if normalize_name(each) == normalize_name(name)]


def check_classes_agree(run: PlannedRun) -> Iterator[UserError | Advice]:
    """All data sets of a run have the same classes in the same order."""
    named = [
        data for data in run.data if isinstance(data.classes, (tuple, list)) and not data.takes_text
    ]
    for data in named[1:]:
        first = named[0]
        if tuple(data.classes) == tuple(first.classes):
            continue
        same = sorted(data.classes) == sorted(first.classes)
        yield ConfigError(
            f'{data.key}.metainfo.classes: {_as_tuple(data.classes)} must equal {first.key}.metainfo.classes '
            f'{_as_tuple(first.classes)}{" in the same order" if same else ""}; a detector has one class '
            f'order'
        )


def join_names(names: Sequence[str]) -> str:
    """The names as one string; of more than six, the first six and the total number."""
    shown = ', '.join(map(str, names[:6]))
    return f'{shown}, … ({len(names)} in total)' if len(names) > 6 else shown or 'no class'


def _as_tuple(names: Sequence[str]) -> str:
    if len(names) > 12:
        return f'({", ".join(map(repr, names[:12]))}, …)'
    return repr(tuple(names))
