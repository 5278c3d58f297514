"""Which runs are a run's teacher and baseline, read from the configs.

What they do not determine, or would compare unlike things, is left out, with a note why.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, UserError
from ..teachers.live import load_config
from .rows import ROLES, Row
from .work_dir import WorkDir, essence

NO_MODEL = ('_scope_',)  # keys that say nothing of a model


def assign_roles(
    rows: Sequence[Row],
    teachers: Mapping[str, str] | None = None,
    baselines: Mapping[str, str] | None = None,
) -> list[Row]:
    """Find out who is whose teacher and baseline.

    Args:
        rows: Of a report; roles, pairs and notes are set.
        teachers: For a distilled student's folder that of its teacher, where it is to be overruled.
        baselines: The same of its baseline.

    Returns:
        Teachers first, then baselines, distilled students, others.

    Raises:
        ConfigError: A folder that is to be overruled, or named for it, is not among them.
    """
    given_teachers, given_baselines = _told(rows, teachers), _told(rows, baselines)
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
    """The row that a work directory belongs to.

    Raises:
        ConfigError: It is not among them.
    """
    for row in rows:
        if any(run.path.resolve() == Path(path).resolve() for run in row.runs):
            return row
    raise ConfigError(f'{path} is not among the work directories of this report; name it there too')


def _told(rows: Sequence[Row], pairs: Mapping[str, str] | None) -> dict[Row, Row]:
    told = {}
    for path, other in (pairs or {}).items():
        row, told_row = row_of(path, rows), row_of(other, rows)
        if not row.first.distilled:
            raise ConfigError(f'{path} is no distilled student: its model.type is no Distiller')
        if told_row is row:
            raise ConfigError(f'{path} cannot be compared with itself, {other}')
        told[row] = told_row
    return told


def _checked_baseline(row: Row, given: Mapping[Row, Row]) -> Row | None:
    """A baseline that was named, with a note on what it does not share."""
    baseline = given.get(row)
    differences = _differences(baseline, row) if baseline else ''
    if baseline is not None and differences:
        row.notes.append(f'baseline {baseline.name}, as told, differs: {differences}')
    return baseline


def _find_baseline(row: Row, rows: Sequence[Row]) -> Row | None:
    """The plain training of the same student, schedule and data."""
    student = essence(row.first.config.model.student, NO_MODEL)
    same = [
        other
        for other in rows
        if not other.first.distilled
        and other.first.trained is not None
        and essence(other.first.config.model, NO_MODEL) == student
    ]
    fit = [other for other in same if not _differences(other, row)]
    finished = [other for other in fit if other.finished]
    for other in same:
        if other not in fit:
            row.notes.append(f'{other.name} is no baseline: {_differences(other, row)}')
        elif not other.finished and not finished:
            row.notes.append(f'the baseline {other.name} is unfinished')
    if not same:
        row.notes.append('no baseline here: no work directory trains its student alone')
    return finished[0] if finished else None


def _differences(other: Row, row: Row) -> str:
    """In which settings a plain training is not what the distilled one is without its teacher."""
    return differences(
        other.first.recipe(other.first.deployed().model),
        row.first.recipe(row.first.deployed().model),
    )


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """In which settings two configs differ, the first three in words; empty where in none.

    Args:
        theirs: Plain dicts and lists, as :func:`essence` gives them.
        ours: Likewise; what the message calls ``here``.
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
    """The training that wrote the teacher's checkpoint, or one of the teacher's config."""
    model = row.first.config.model
    declared = [model.get('teacher'), *(model.get('teachers') or {}).values()]
    teachers = [teacher for teacher in declared if teacher and 'checkpoint' in teacher]
    if len(teachers) != 1:
        what = 'several teachers' if teachers else 'no teacher with a checkpoint'
        row.notes.append(f'{what}, so there is no gap; --teacher names one to compare with')
        return None
    weights = str(teachers[0].checkpoint)
    for other in rows:
        for run in other.runs:
            if _wrote(run, weights):
                shown = [Path(one.checkpoint or '').name for one in other.runs]
                if Path(weights).name not in shown or len(other.runs) > 1:
                    row.notes.append(f'taught by {run.path.name}/{Path(weights).name}')
                return other
    try:
        config = essence(load_config(teachers[0].config).model, NO_MODEL)
    except UserError:
        config = None
    alike = [other for other in rows if essence(other.first.deployed().model, NO_MODEL) == config]
    if len(alike) == 1 and alike[0] is not row:
        row.notes.append(f'teacher {alike[0].name} by its config; taught by {weights}')
        return alike[0]
    names = ', '.join(other.name for other in alike)
    row.notes.append(
        f'its teacher is one of {names}; name it by --teacher'
        if len(alike) > 1
        else f'its teacher is not here: {weights}'
    )
    return None


def _wrote(run: WorkDir, checkpoint: str) -> bool:
    if run.trained is None:  # a test of weights from elsewhere
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
