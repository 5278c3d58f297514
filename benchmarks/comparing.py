"""Tables and plots of studies, from their finished runs."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conditions import alike, differing_files, is_recorded
from study import BASELINE, TEACHER

if TYPE_CHECKING:
    from results import Results
    from steps import Steps
    from study import Study

    from mmkd.analysis.statistics import Difference


# Runs that a claim needs. A gain measured with three seeds on one machine was not reproduced on another.
CLAIM = 8


def present(
    study: Study, results: Results, like: str | None = None
) -> dict[str, dict[int, dict[str, Any]]]:
    """Lines by recipe and seed, of runs as the study declares them now and of one arithmetic.

    Args:
        study: Others than its runs are out of date.
        results: Where the lines are.
        like: The arithmetic (see :func:`alike`); None is that of most runs.

    Raises:
        UserError: Two runs have read files of one name and different content.
    """
    from mmkd.errors import UserError

    trained = {line['seed'] for line in results.lines if line['recipe'] != TEACHER}
    runs = study.runs(None, sorted({*study.settings.seeds, *trained}))
    like = results.most(runs) if like is None else like
    found: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in study.settings.recipes}
    for run in runs:
        line = results.of(run, like)
        if line is not None:
            found[run.recipe][run.seed] = line
    found = {name: lines for name, lines in found.items() if lines}
    other = differing_files(line for lines in found.values() for line in lines.values())
    if other:
        raise UserError(
            f'{results.path}: runs of {study.name} have read different files by the name of '
            f'{", ".join(other)} and cannot be compared; mark those of one kind as withdrawn'
        )
    return found


def compare(
    study: Study, results: Results, steps: Steps | None = None, like: str | None = None
) -> str:
    """The table of a study: means over seeds, and what recipes gain over the baseline.

    Gains, their chance and shares of the gap are shown from :data:`CLAIM` runs of either side on. Where
    steps were measured, what one costs in steps of the student too.

    Args:
        study: Whose runs.
        results: Where their lines are.
        steps: Where what was measured is.
        like: The arithmetic of the runs (see :func:`alike`); None is that of most.
    """
    from mmkd.analysis.statistics import interval
    from mmkd.analysis.tables import markdown_table, with_error
    from mmkd.analysis.work_dir import METRICS

    found = present(study, results, like)
    costs = {}
    for run in study.runs(None, [study.settings.seeds[0]]) if steps and steps.lines else ():
        costs[run.recipe] = steps.of(run.digest)
    lines = [line for recipe in found.values() for line in recipe.values()]
    teacher = results.of(study.teacher(), alike(lines[0])) if lines else None
    rows = [['recipe', 'runs', *METRICS, 'mAP over baseline', 'p', 'gap closed']]
    if teacher:
        scores = [f'{100 * teacher[name]:.1f}' for name in METRICS]
        rows.append([TEACHER, '1', *scores, '', '', ''])
    gains = gains_of(study, found)
    for recipe, runs in found.items():
        cells = [recipe, str(len(runs))]
        for name in METRICS:
            cells.append(with_error(*interval([100 * line[name] for line in runs.values()])))
        cells += _gain_cells(gains.get(recipe), teacher)
        rows.append(cells)
    if costs:
        for row in rows:
            line = costs.get(row[0])
            row.append(f'{line["kd_step_s"] / line["student_step_s"]:.2f}' if line else '')
        rows[0][-1] = 'step'
    note = textwrap.fill(_note(found, gains, bool(costs)), 100)
    return '\n\n'.join([markdown_table(rows), note, *_left_out(study, results, found)])


@dataclass(frozen=True)
class Gain:
    """What a recipe gains over its baseline, both trained often enough, in points of mAP.

    Attributes:
        baseline: Mean of the baseline.
        difference: To it.
        p: That of the difference, adjusted to the number of recipes of the study.
        correlation: Between the two over the seeds they share.
    """

    baseline: float
    difference: Difference
    p: float
    correlation: float


def gains_of(study: Study, found: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> dict[str, Gain]:
    """By recipe, of those with :data:`CLAIM` runs of their own and of their baseline.

    Args:
        study: Says what is whose baseline.
        found: Its lines, by recipe and seed.
    """
    import numpy as np

    from mmkd.analysis.statistics import difference, holm

    known: dict[str, tuple[float, Difference, float]] = {}
    for recipe, lines in found.items():
        other = study.settings.recipes[recipe].get('against', BASELINE)
        base = found.get(other, {})
        if recipe == other or min(len(lines), len(base)) < CLAIM:
            continue
        ours, theirs = ({s: 100 * one['mAP'] for s, one in side.items()} for side in (lines, base))
        shared = sorted(ours.keys() & theirs.keys())
        pairs = [[side[seed] for seed in shared] for side in (ours, theirs)]
        alone = len(shared) < CLAIM or min(map(np.std, pairs)) == 0
        correlation = float('nan') if alone else float(np.corrcoef(*pairs)[0, 1])
        values = list(ours.values()), list(theirs.values())
        known[recipe] = (float(np.mean(values[1])), difference(*values), correlation)
    adjusted = holm([found.p for _, found, _ in known.values()])
    return {
        recipe: Gain(mean, found, p, correlation)
        for (recipe, (mean, found, correlation)), p in zip(known.items(), adjusted, strict=True)
    }


def _gain_cells(gain: Gain | None, teacher: dict[str, Any] | None) -> list[str]:
    from mmkd.analysis.tables import DASH, with_error

    if gain is None:
        return [DASH, DASH, DASH]
    found, share = gain.difference, DASH
    gap = 100 * teacher['mAP'] - gain.baseline if teacher else 0.0
    if gap > 0:
        share = f'{100 * found.mean / gap:.0f} % of {gap:.1f}'
    p = f'{gain.p:.3f}' if gain.p >= 0.001 else '< 0.001'
    return [with_error(found.mean, found.half, signed=True), p, share]


def _note(found: Mapping[str, Any], gains: Mapping[str, Gain], costs: bool) -> str:
    """What the columns mean, and what holds of all lines."""
    import numpy as np

    text = "± is half of the 95 % confidence interval of the mean (Student's t). "
    if gains:
        text += (
            f'Gains are differences between means of independent runs with 95 % confidence intervals '
            f'(Welch). p is adjusted for {len(gains)} comparisons (Holm). Gap closed: the share of the gap '
            f'between baseline and teacher (one training run), and the gap in points of mAP. '
        )
        known = [
            gain.correlation for gain in gains.values() if gain.correlation == gain.correlation
        ]
        if known:
            text += (
                f'Runs are not paired by seed: the correlation between recipe and baseline across seeds '
                f'is {np.mean(known):+.2f} on average ({min(known):+.2f} to {max(known):+.2f}). '
            )
    else:
        text += f'Gains are shown from {CLAIM} runs on. '
    if costs:
        text += 'Step: duration of a training step relative to the student alone, forward and backward. '
    lines = [line for runs in found.values() for line in runs.values()]
    if lines:
        devices = sorted({line['device'] for line in lines if is_recorded(line)})
        text += ', on '.join(
            [f'Trained with {alike(lines[0])}', *['; '.join(devices)] * bool(devices)]
        )
        text += '.'
    return text.strip()


def _left_out(study: Study, results: Results, found: Mapping[str, Any]) -> list[str]:
    """A table of runs that are there, and unlike those that are compared: what the arithmetic decides."""
    from mmkd.analysis.tables import DASH, markdown_table

    shown = alike(next(iter(next(iter(found.values())).values()))) if found else ''
    scores: dict[tuple[str, str], dict[int, float]] = {}
    for run in study.runs(None, sorted({line['seed'] for line in results.lines})):
        for line in results.every(run):
            scores.setdefault((run.recipe, alike(line)), {})[run.seed] = 100 * line['mAP']
    recipes = {recipe for recipe, kind in scores if kind != shown}
    rows = {key: values for key, values in scores.items() if key[0] in recipes}
    if not rows:
        return []
    seeds = sorted({seed for (_, kind), values in rows.items() for seed in values if kind != shown})
    table = [['recipe', 'conditions', *(f'seed {seed}' for seed in seeds)]]
    short = len({kind.split('; ')[1] for _, kind in rows}) == 1  # versions are the same
    for (recipe, kind), values in rows.items():
        kind = kind.split('; ')[0] if short else kind
        each = [f'{values[seed]:.1f}' if seed in values else DASH for seed in seeds]
        table.append([recipe, kind, *each])
    text = 'The same runs under other conditions (mAP of single runs). They are not part of the comparison.'
    return [text, markdown_table(table, left=2)]


def publish(name: str, table: str, page: Path) -> None:
    """Put a study's table into the page, between the marks that bear its name.

    Raises:
        UserError: The page has no such marks.
    """
    from mmkd.errors import UserError

    start, end = f'<!-- table of {name} -->\n', f'<!-- end of {name} -->'
    text = page.read_text(encoding='utf-8')
    if start not in text or end not in text:
        raise UserError(f'{page} has no lines {start.strip()} and {end} to put the table between')
    before, rest = text.split(start, 1)
    page.write_text(f'{before}{start}\n{table}\n\n{end}{rest.split(end, 1)[1]}', encoding='utf-8')


def plot(study: Study, results: Results, path: Path) -> None:
    """Every run as a point, each recipe's mean with its interval, the teacher as a line."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    from mmkd.analysis.statistics import interval

    found = present(study, results)
    figure, axes = pyplot.subplots(figsize=(1.5 + 1.1 * len(found), 3.6), layout='constrained')
    for place, (_, lines) in enumerate(found.items()):
        values = [100 * line['mAP'] for line in lines.values()]
        mean, half = interval(values)
        axes.plot([place] * len(values), values, 'o', color='tab:gray', alpha=0.6, zorder=1)
        axes.errorbar(place, mean, 0 if half != half else half, fmt='_', capsize=5, color='black')
    lines = [line for runs in found.values() for line in runs.values()]
    teacher = results.of(study.teacher(), alike(lines[0])) if lines else None
    if teacher:
        axes.axhline(100 * teacher['mAP'], color='tab:green', linestyle='--', label=TEACHER)
        axes.legend(frameon=False)
    axes.set_xticks(range(len(found)), list(found), rotation=30, ha='right')
    axes.set_ylabel('mAP')
    axes.set_title(f'{study.name}: runs, mean, 95 % interval', fontsize=10)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
