"""Find the teacher and the baseline of each distilled run from the configs.

A pair that the configs do not determine, or that is not comparable, is left out; a note states the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, UserError
from ..teachers.live import load_config
from .rows import ROLES, Row
from .work_dir import WorkDir, comparable_config

NON_MODEL_KEYS = ('_scope_',)  # keys of a model config that do not affect the model


def assign_roles(
    rows: Sequence[Row],
    teachers: Mapping[str, str] | None = None,
    baselines: Mapping[str, str] | None = None,
) -> list[Row]:
    """Set the role, teacher, baseline and notes of each row.

    Args:
        rows: The rows of a report.
        teachers: Teachers that the user named: folder of a distilled student to folder of its teacher.
        baselines: Baselines that the user named, in the same form.

    Returns:
        The rows, sorted: teachers, baselines, distilled students, others.

    Raises:
        ConfigError: A folder in ``teachers`` or ``baselines`` is not in the report.
    """
    given_teachers, given_baselines = (
        _resolve_pairs(rows, teachers),
        _resolve_pairs(rows, baselines),
    )
    for row in rows:
        if row.first.distilled:
            row.baseline = _checked_baseline(row, given_baselines) or _find_baseline(row, rows)
            row.teacher = given_teachers.get(row) or _find_teacher(row, rows)
            _check_teacher(row, overruled=row in given_teachers)
    for row in rows:
        roles = {
            'teacher': any(other.teacher is row for other in rows),
            'baseline': any(other.baseline is row for other in rows),
            'distilled': row.first.distilled,
        }
        row.role = next((role for role, holds in roles.items() if holds), 'other')
    return sorted(rows, key=lambda row: ROLES.index(row.role))


def row_of(path: str, rows: Iterable[Row]) -> Row:
    """The row of a work directory.

    Raises:
        ConfigError: No row contains the work directory.
    """
    for row in rows:
        if any(run.path.resolve() == Path(path).resolve() for run in row.runs):
            return row
    raise ConfigError(
        f'{path}: must be one of the work directories of this report; name it there too'
    )


def _resolve_pairs(rows: Sequence[Row], pairs: Mapping[str, str] | None) -> dict[Row, Row]:
    told = {}
    for path, other in (pairs or {}).items():
        row, other_row = row_of(path, rows), row_of(other, rows)
        if not row.first.distilled:
            raise ConfigError(
                f'{path}: must be a distilled student, but its model.type is not Distiller'
            )
        if other_row is row:
            raise ConfigError(f'{path}: cannot be compared with itself, {other}; name another run')
        told[row] = other_row
    return told


def _checked_baseline(row: Row, given: Mapping[Row, Row]) -> Row | None:
    """The baseline that the user named, if any; differences are added to the notes."""
    baseline = given.get(row)
    differences = _differences(baseline, row) if baseline else ''
    if baseline is not None and differences:
        row.notes.append(f'baseline {baseline.name}, named by --baseline, differs: {differences}')
    return baseline


def _find_baseline(row: Row, rows: Sequence[Row]) -> Row | None:
    """The run of the same student without distillation, with the same schedule and data."""
    student = comparable_config(row.first.config.model.student, NON_MODEL_KEYS)
    same = [
        other
        for other in rows
        if not other.first.distilled
        and other.first.trained is not None
        and comparable_config(other.first.config.model, NON_MODEL_KEYS) == student
    ]
    fit = [other for other in same if not _differences(other, row)]
    finished = [other for other in fit if other.finished]
    for other in same:
        if other not in fit:
            row.notes.append(f'{other.name} is not a baseline: {_differences(other, row)}')
        elif not other.finished and not finished:
            row.notes.append(f'the baseline {other.name} is unfinished')
    if not same:
        row.notes.append('no baseline: no work directory trains its student without distillation')
    return finished[0] if finished else None


def _differences(other: Row, row: Row) -> str:
    """The settings, except for the teacher, in which a plain run differs from a distilled run."""
    return differences(
        other.first.recipe(other.first.deployed().model),
        row.first.recipe(row.first.deployed().model),
    )


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """The first three settings in which two configs differ, as text; empty if they are equal.

    Args:
        theirs: Plain dicts and lists, as from :func:`comparable_config`.
        ours: The same; the text calls it ``here``.
    """
    theirs, ours = dict(_leaves(theirs)), dict(_leaves(ours))
    keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    shown = [f'{k} is {_short(theirs.get(k))}, here {_short(ours.get(k))}' for k in keys[:3]]
    more = [f'and {len(keys) - 3} more'] if len(keys) > 3 else []
    return '; '.join(shown + more)


def _leaves(node: Any, key: str = '') -> Iterator[tuple[str, Any]]:
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    for name, value in pairs:
        if isinstance(value, (dict, list)) and value:
            yield from _leaves(value, f'{key}{name}.')
        else:
            yield f'{key}{name}', value


def _short(value: Any) -> str:
    text = 'not set' if value is None else str(value)
    return text if len(text) <= 40 else f'…{text[-39:]}'


def _find_teacher(row: Row, rows: Sequence[Row]) -> Row | None:
    """The run that wrote the teacher's checkpoint, or else the only run with the teacher's config."""
    model = row.first.config.model
    declared = [model.get('teacher'), *(model.get('teachers') or {}).values()]
    teachers = [teacher for teacher in declared if teacher and 'checkpoint' in teacher]
    if len(teachers) != 1:
        what = 'several teachers' if teachers else 'no teacher with a checkpoint'
        row.notes.append(f'gap unknown: {what}; name one with --teacher')
        return None
    weights = str(teachers[0].checkpoint)
    for other in rows:
        for run in other.runs:
            if _wrote(run, weights):
                shown = [Path(one.checkpoint or '').name for one in other.runs]
                if Path(weights).name not in shown or len(other.runs) > 1:
                    row.notes.append(f'teacher checkpoint: {run.path.name}/{Path(weights).name}')
                return other
    try:
        config = comparable_config(load_config(teachers[0].config).model, NON_MODEL_KEYS)
    except UserError:
        config = None
    alike = [
        other
        for other in rows
        if comparable_config(other.first.deployed().model, NON_MODEL_KEYS) == config
    ]
    if len(alike) == 1 and alike[0] is not row:
        row.notes.append(
            f'teacher {alike[0].name} was matched by its config; teacher checkpoint: {weights}'
        )
        return alike[0]
    names = ', '.join(other.name for other in alike)
    row.notes.append(
        f'its teacher may be any of {names}; name it with --teacher'
        if len(alike) > 1
        else f'its teacher is not in this report: {weights}'
    )
    return None


def _wrote(run: WorkDir, checkpoint: str) -> bool:
    if run.trained is None:  # a test, not a training run
        return run.checkpoint == checkpoint
    return '://' not in checkpoint and Path(checkpoint).resolve().parent == run.path.resolve()


def _check_teacher(row: Row, overruled: bool) -> None:
    if row.teacher is None:
        return
    if not row.teacher.finished:
        row.notes.append(f'the teacher {row.teacher.name} is unfinished')
    if row.first.evaluated_on() != row.teacher.first.evaluated_on():
        row.comparable = overruled
        row.notes.append(f'teacher {row.teacher.name} is validated on other images or classes')
