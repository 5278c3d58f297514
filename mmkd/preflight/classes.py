"""Whether the class names of a config are those that its labels mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from ..errors import ConfigError, UserError, did_you_mean
from .advice import Advice
from .annotations import AnnotatedData, bare
from .planned_run import PlannedRun


def check_names(run: PlannedRun) -> Iterator[UserError | Advice]:
    """Each class has a name of its own, and the names are where the data set reads them."""
    for data in run.data:
        key = f'{data.key}.metainfo'
        given = data.config.get('metainfo') or {}
        classes = data.classes
        for wrong in ('CLASSES', 'class_names', 'names'):
            if wrong in given and 'classes' not in given:
                yield ConfigError(
                    f'{key}.{wrong}: the data set reads the key classes, got {wrong}; rename it'
                )
        if isinstance(classes, str):
            yield ConfigError(
                f'{key}.classes: must be a tuple of names, got the text {classes!r}; write '
                f"('{classes}',) with a comma"
            )
        elif classes is None and not data.takes_text:
            yield Advice(
                f'{key}.classes: {data.kind.__name__} has no class names to compare with; set them to a '
                f'tuple of names'
            )
        elif classes is None:
            continue
        else:
            twice = [name for name, count in Counter(classes).items() if count > 1]
            others = [name for name in classes if not isinstance(name, str)]
            if others:
                yield ConfigError(
                    f'{key}.classes: names must be texts, got {others[0]!r}; quote it'
                )
            elif not classes and not data.takes_text:
                yield ConfigError(f'{key}.classes: must name at least one class, got {classes!r}')
            elif twice:
                yield ConfigError(f'{key}.classes: {twice[0]!r} stands there twice; take one out')


def check_labels(run: PlannedRun) -> Iterator[UserError | Advice]:
    """Each label means the class of its name, and each class is in the files.

    ``CocoDataset`` numbers labels by the order of the annotation file, whatever the order of the names is,
    and a data set passes over names that its files do not have.
    """
    for data in run.data:
        classes = data.classes
        if isinstance(classes, str) or classes is None:
            continue
        yield from _check_order(data, tuple(classes))
        yield from _check_presence(data, tuple(classes))


def _check_order(data: AnnotatedData, classes: tuple[str, ...]) -> Iterator[UserError]:
    """Compare with the names that the annotation file has for each label."""
    labelled = data.names_by_label()
    if labelled is None or tuple(labelled) == classes[: len(labelled)]:
        return
    key, path = f'{data.key}.metainfo.classes', data.path
    names = data.names_in_files() or []
    unknown = [name for name in classes if name not in names]
    if unknown:
        if 'classes' not in (data.config.get('metainfo') or {}):
            yield ConfigError(
                f'{key}: not given, so that the {len(classes)} classes of {data.kind.__name__} apply, but '
                f'{path} has {listed(names)}; set it to {_as_tuple(names)}'
            )
        else:
            yield _unknown(data, unknown[0], classes, names)
        return
    twice = [name for name, count in Counter(labelled).items() if count > 1]
    if twice:
        yield ConfigError(
            f'{key}: {path} has {Counter(labelled)[twice[0]]} categories called {twice[0]!r}, each with a '
            f'label of its own; rename one in the file, or join them'
        )
        return
    how = '' if 'classes' in (data.config.get('metainfo') or {}) else f' of {data.kind.__name__}'
    yield ConfigError(
        f'{key}: the order{how} is {_as_tuple(classes)}, but labels are numbered in the order of {path}; '
        f'write {_as_tuple(labelled)}'
    )


def _check_presence(data: AnnotatedData, classes: tuple[str, ...]) -> Iterator[UserError | Advice]:
    """Find names that are in no file."""
    key = f'{data.key}.metainfo.classes'
    names = data.names_in_files()
    labelled = data.names_by_label()
    if names is None or (labelled is not None and tuple(labelled) != classes[: len(labelled)]):
        return  # nothing to compare with, or said already
    absent = [name for name in classes if name not in names]
    unused = [name for name in names if name not in classes]
    meant = [name for name in absent if _alike(name, unused)]
    if not meant and len(absent) == len(classes):
        meant = [name for name in absent if did_you_mean(name, unused)]
    if meant:
        yield _unknown(data, meant[0], classes, names)
    elif absent and len(absent) == len(classes):
        yield ConfigError(
            f'{key}: {data.path} has none of {listed(classes)}, but {listed(names)}; choose from these'
        )
    elif absent and not data.in_test_mode and data.is_read_whole:
        hint = did_you_mean(absent[0], unused)
        yield Advice(f'{key}: {data.path} has no object of {listed(absent)}{hint}')
    for name in (name for name in classes if name in names):
        spelled = _alike(name, unused)
        if spelled:
            yield Advice(
                f'{key}: {data.path} has objects called {spelled[0]!r} beside {name!r}, which are left out; '
                f'rename them in the file if they are the same'
            )


def _unknown(data: AnnotatedData, name: str, classes: Sequence[str], names: list[str]) -> UserError:
    unused = [each for each in names if each not in classes]
    alike = _alike(name, unused)
    hint = f'; write {alike[0]!r}' if alike else did_you_mean(name, unused or names)
    return ConfigError(
        f'{data.key}.metainfo.classes: {data.path} has no class {name!r}'
        f'{hint or f"; it has {listed(names)}"}'
    )


def _alike(name: str, names: list[str]) -> list[str]:
    """Those that differ from a name only in case, spaces, hyphens or underscores."""
    return [each for each in names if bare(each) == bare(name)]


def check_classes_agree(run: PlannedRun) -> Iterator[UserError | Advice]:
    """All data sets of a run number the same classes in the same order."""
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
            f'{_as_tuple(first.classes)}{" in order too" if same else ""}; a detector has one numbering of '
            f'classes'
        )


def listed(names: Sequence[str]) -> str:
    shown = ', '.join(map(str, names[:6]))
    return f'{shown}, … ({len(names)} in all)' if len(names) > 6 else shown or 'no class'


def _as_tuple(names: Sequence[str]) -> str:
    if len(names) > 12:
        return f'({", ".join(map(repr, names[:12]))}, …)'
    return repr(tuple(names))
