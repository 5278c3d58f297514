"""Scores in prose: each stands between marks and is generated from the finished runs.

``<!--= voc_160 kl-mse gain -->+2.1 ± 0.8<!--/-->`` in README.md or a file of docs/ is filled in by run.py.
After the equals sign stand the study, the recipe and what is meant:

- ``mAP``: the mean, with half of its 95 % interval; of the teacher its mAP
- ``gain``: mAP over the baseline, with half of its 95 % interval
- ``share``: of the gap that the gain closes
- ``runs``: how many there are

or the study and ``gap``, the points from baseline to teacher, or ``verdict``, a sentence on which recipes
gain.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comparing import CLAIM, gains_of, present
from conditions import alike
from study import TEACHER

if TYPE_CHECKING:
    from results import Results
    from study import Study

MARK = re.compile(r'<!--=\s*(?P<what>[^>]*?)\s*-->(?P<text>.*?)<!--/-->', re.DOTALL)
CHANCE = 0.05  # significance level


def pages(root: Path) -> Iterator[Path]:
    """The files in which numbers of studies may stand.

    Args:
        root: Of the repository.
    """
    yield root / 'README.md'
    yield from sorted((root / 'docs').rglob('*.md'))


def fill(text: str, load: Callable[[str], tuple[Study, Results]]) -> str:
    """A page with all its marks filled in.

    Args:
        text: The page.
        load: Gives a study and the finished runs by its name.

    Raises:
        UserError: A mark asks for what the runs do not support.
    """
    said: dict[str, dict[str, str]] = {}

    def one(mark: re.Match[str]) -> str:
        from mmkd.errors import ConfigError, did_you_mean

        study, _, what = mark['what'].partition(' ')
        if study not in said:
            said[study] = statements(*load(study))
        if what not in said[study]:
            raise ConfigError(
                f'{mark[0]}: the runs of {study} do not support this{did_you_mean(what, said[study])}; '
                f'a gain needs {CLAIM} runs of recipe and baseline'
            )
        return f'<!--= {mark["what"]} -->{said[study][what]}<!--/-->'

    return MARK.sub(one, text)


def statements(study: Study, results: Results) -> dict[str, str]:
    """All statements that the runs of a study support, by what stands in a mark after its name."""
    from mmkd.analysis.statistics import gap_closed, interval
    from mmkd.analysis.tables import with_error

    found = present(study, results)
    said: dict[str, str] = {}
    for recipe, lines in found.items():
        said[f'{recipe} mAP'] = with_error(
            *interval([100 * line['mAP'] for line in lines.values()])
        )
        said[f'{recipe} runs'] = str(len(lines))
    every: list[dict[str, Any]] = [line for lines in found.values() for line in lines.values()]
    line = results.of(study.teacher(), alike(every[0])) if every else None
    teacher = 100 * line['mAP'] if line else None
    if teacher is not None:
        said[f'{TEACHER} mAP'] = f'{teacher:.1f}'
    gains = gains_of(study, found)
    for recipe, gain in gains.items():
        mean = gain.difference.mean
        said[f'{recipe} gain'] = with_error(mean, gain.difference.half, signed=True)
        share = teacher and gap_closed(teacher, gain.baseline, gain.baseline + mean)
        if teacher and share is not None:
            said[f'{recipe} share'] = f'{100 * share:.0f} %'
            said['gap'] = f'{teacher - gain.baseline:.1f}'
    if gains:
        said['verdict'] = verdict({name: (g.difference.mean, g.p) for name, g in gains.items()})
    return said


def verdict(gains: dict[str, tuple[float, float]]) -> str:
    """Which recipes differ significantly from the baseline, as text.

    Args:
        gains: Of each recipe the mean, in points of mAP, and p.
    """
    kinds: dict[str, list[str]] = {'gain': [], 'lose': [], 'neither': []}
    for name, (mean, p) in gains.items():
        kind = 'neither' if p >= CHANCE else 'gain' if mean > 0 else 'lose'
        kinds[kind].append(f'`{name}`')
    text = {
        'gain': f'Significant gains (p < {CHANCE})',
        'lose': f'Significant losses (p < {CHANCE})',
        'neither': 'Not significant',
    }
    return ' '.join(f'{text[kind]}: {", ".join(names)}.' for kind, names in kinds.items() if names)
