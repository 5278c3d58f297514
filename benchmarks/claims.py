"""Scores in prose: each stands between marks and is generated from the finished runs.

run.py fills in marks such as ``<!--= voc_160 kl-mse gain -->+2.1 ± 0.8<!--/-->`` in README.md and docs/.
A mark names the study, the recipe and one of these values:

- ``mAP``: the mean ± half of its 95 % interval; for the teacher, its mAP
- ``gain``: mAP over the baseline ± half of its 95 % interval
- ``share``: the share of the gap that the gain closes
- ``runs``: the number of runs

or the study and one of these:

- ``gap``: points of mAP from baseline to teacher
- ``verdict``: a sentence that lists which recipes gain
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comparing import MIN_RUNS, comparable_lines, gains_of
from conditions import conditions_of
from study import TEACHER

if TYPE_CHECKING:
    from results import Results
    from study import Study

MARK = re.compile(r'<!--=\s*(?P<what>[^>]*?)\s*-->(?P<text>.*?)<!--/-->', re.DOTALL)
SIGNIFICANCE_LEVEL = 0.05


def pages(root: Path) -> Iterator[Path]:
    """The files that may contain scores of studies.

    Args:
        root: The root of the repository.
    """
    yield root / 'README.md'
    yield from sorted((root / 'docs').rglob('*.md'))


def fill(text: str, load: Callable[[str], tuple[Study, Results]]) -> str:
    """Fill in all marks of a page.

    Args:
        text: The page.
        load: Returns the study of a name and its finished runs.

    Raises:
        UserError: The runs do not support what a mark asks for.
    """
    known: dict[str, dict[str, str]] = {}

    def replacement(mark: re.Match[str]) -> str:
        from mmkd.errors import ConfigError, did_you_mean

        study, _, what = mark['what'].partition(' ')
        if study not in known:
            known[study] = statements(*load(study))
        if what not in known[study]:
            raise ConfigError(
                f'{mark[0]}: the runs of {study} do not support this{did_you_mean(what, known[study])}; '
                f'a gain needs {MIN_RUNS} runs of recipe and baseline'
            )
        return f'<!--= {mark["what"]} -->{known[study][what]}<!--/-->'

    return MARK.sub(replacement, text)


def statements(study: Study, results: Results) -> dict[str, str]:
    """All statements that the runs of a study support, by the part of a mark after the study's name."""
    from mmkd.analysis.statistics import gap_closed, interval
    from mmkd.analysis.tables import with_error

    found = comparable_lines(study, results)
    known: dict[str, str] = {}
    for recipe, lines in found.items():
        known[f'{recipe} mAP'] = with_error(
            *interval([100 * line['mAP'] for line in lines.values()])
        )
        known[f'{recipe} runs'] = str(len(lines))
    every: list[dict[str, Any]] = [line for lines in found.values() for line in lines.values()]
    line = results.line_of(study.teacher(), conditions_of(every[0])) if every else None
    teacher = 100 * line['mAP'] if line else None
    if teacher is not None:
        known[f'{TEACHER} mAP'] = f'{teacher:.1f}'
    gains = gains_of(study, found)
    for recipe, gain in gains.items():
        mean = gain.difference.mean
        known[f'{recipe} gain'] = with_error(mean, gain.difference.half, signed=True)
        share = teacher and gap_closed(teacher, gain.baseline, gain.baseline + mean)
        if teacher and share is not None:
            known[f'{recipe} share'] = f'{100 * share:.0f} %'
            known['gap'] = f'{teacher - gain.baseline:.1f}'
    if gains:
        known['verdict'] = verdict({name: (g.difference.mean, g.p) for name, g in gains.items()})
    return known


def verdict(gains: dict[str, tuple[float, float]]) -> str:
    """Which recipes differ significantly from the baseline, as text.

    Args:
        gains: The mean gain, in points of mAP, and p, by recipe.
    """
    kinds: dict[str, list[str]] = {'gain': [], 'lose': [], 'neither': []}
    for name, (mean, p) in gains.items():
        kind = 'neither' if p >= SIGNIFICANCE_LEVEL else 'gain' if mean > 0 else 'lose'
        kinds[kind].append(f'`{name}`')
    text = {
        'gain': f'Significant gains (p < {SIGNIFICANCE_LEVEL})',
        'lose': f'Significant losses (p < {SIGNIFICANCE_LEVEL})',
        'neither': 'Not significant',
    }
    return ' '.join(f'{text[kind]}: {", ".join(names)}.' for kind, names in kinds.items() if names)
