"""Tables and plots of studies, from their finished runs."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conditions import conditions_of, differing_files, records_arithmetic
from study import BASELINE, TEACHER

if TYPE_CHECKING:
    from results import Results
    from steps import Steps
    from study import Study

    from mmkd.analysis.statistics import Difference


# Runs of recipe and baseline that a gain needs. A gain measured with three seeds on one machine was not
# reproduced on another.
MIN_RUNS = 8


def comparable_lines(
    study: Study, results: Results, conditions: str | None = None
) -> dict[str, dict[int, dict[str, Any]]]:
    """The lines of a study's runs that may be compared, by recipe and seed.

    Args:
        study: The study; lines of runs that it no longer declares are left out.
        results: The finished runs.
        conditions: The conditions of the runs (see :func:`conditions_of`). Default: those of most runs.

    Raises:
        UserError: Two runs have read different files of the same name.
    """
    from mmkd.errors import UserError

    trained = {line['seed'] for line in results.lines if line['recipe'] != TEACHER}
    runs = study.runs(None, sorted({*study.settings.seeds, *trained}))
    conditions = results.most_common_conditions(runs) if conditions is None else conditions
    found: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in study.settings.recipes}
    for run in runs:
        line = results.line_of(run, conditions)
        if line is not None:
            found[run.recipe][run.seed] = line
    found = {name: lines for name, lines in found.items() if lines}
    other = differing_files(line for lines in found.values() for line in lines.values())
    if other:
        raise UserError(
            f'{results.path}: runs of {study.name} have read different files named {", ".join(other)} '
            f'and cannot be compared; mark the runs with one of the two files as withdrawn'
        )
    return found


def compare(
    study: Study, results: Results, steps: Steps | None = None, conditions: str | None = None
) -> str:
    """The table of a study, with its caption: means over seeds, and gains over the baseline.

    Gains, p and shares of the gap need :data:`MIN_RUNS` runs of recipe and baseline. If steps were measured,
    a column has the duration of a step relative to the student's.

    Args:
        study: The study.
        results: The finished runs.
        steps: The measured steps.
        conditions: The conditions of the runs (see :func:`conditions_of`). Default: those of most runs.
    """
    from mmkd.analysis.statistics import interval
    from mmkd.analysis.tables import markdown_table, with_error
    from mmkd.analysis.work_dir import METRICS

    found = comparable_lines(study, results, conditions)
    costs = {}
    for run in study.runs(None, [study.settings.seeds[0]]) if steps and steps.lines else ():
        costs[run.recipe] = steps.line_of(run.digest)
    lines = [line for recipe in found.values() for line in recipe.values()]
    teacher = results.line_of(study.teacher(), conditions_of(lines[0])) if lines else None
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
    caption = textwrap.fill(_caption(found, gains, bool(costs)), 100)
    return '\n\n'.join([markdown_table(rows), caption, *_other_conditions(study, results, found)])


@dataclass(frozen=True)
class Gain:
    """The gain of a recipe over its baseline, in points of mAP.

    Attributes:
        baseline: Mean of the baseline.
        difference: Mean of the recipe minus mean of the baseline, with its interval.
        p: p of the difference, adjusted for the number of recipes of the study.
        correlation: Correlation of recipe and baseline over shared seeds; NaN with fewer than
            :data:`MIN_RUNS` shared seeds.
    """

    baseline: float
    difference: Difference
    p: float
    correlation: float


def gains_of(study: Study, found: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> dict[str, Gain]:
    """Gains by recipe, for recipes with at least :data:`MIN_RUNS` runs of their own and of their baseline.

    Args:
        study: The study; it declares the baseline of each recipe.
        found: Its lines, by recipe and seed.
    """
    import numpy as np

    from mmkd.analysis.statistics import difference, holm

    known: dict[str, tuple[float, Difference, float]] = {}
    for recipe, lines in found.items():
        baseline = study.settings.recipes[recipe].get('against', BASELINE)
        base = found.get(baseline, {})
        if recipe == baseline or min(len(lines), len(base)) < MIN_RUNS:
            continue
        ours, theirs = ({s: 100 * one['mAP'] for s, one in side.items()} for side in (lines, base))
        shared = sorted(ours.keys() & theirs.keys())
        pairs = [[side[seed] for seed in shared] for side in (ours, theirs)]
        undefined = len(shared) < MIN_RUNS or min(map(np.std, pairs)) == 0
        correlation = float('nan') if undefined else float(np.corrcoef(*pairs)[0, 1])
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


def _caption(found: Mapping[str, Any], gains: Mapping[str, Gain], costs: bool) -> str:
    """Explains the columns and names the conditions of all lines."""
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
        text += f'Gains are shown from {MIN_RUNS} runs on. '
    if costs:
        text += 'Step: duration of a training step relative to the student alone, forward and backward. '
    lines = [line for runs in found.values() for line in runs.values()]
    if lines:
        devices = sorted({line['device'] for line in lines if records_arithmetic(line)})
        text += ', on '.join(
            [f'Trained with {conditions_of(lines[0])}', *['; '.join(devices)] * bool(devices)]
        )
        text += '.'
    return text.strip()


def _other_conditions(study: Study, results: Results, found: Mapping[str, Any]) -> list[str]:
    """A table of the finished runs under other conditions, beside the compared ones of the same seeds."""
    from mmkd.analysis.tables import DASH, markdown_table

    shown = conditions_of(next(iter(next(iter(found.values())).values()))) if found else ''
    scores: dict[tuple[str, str], dict[int, float]] = {}
    for run in study.runs(None, sorted({line['seed'] for line in results.lines})):
        for line in results.lines_of(run):
            scores.setdefault((run.recipe, conditions_of(line)), {})[run.seed] = 100 * line['mAP']
    recipes = {recipe for recipe, conditions in scores if conditions != shown}
    rows = {key: values for key, values in scores.items() if key[0] in recipes}
    if not rows:
        return []
    seeds = sorted({seed for (_, used), values in rows.items() for seed in values if used != shown})
    table = [['recipe', 'conditions', *(f'seed {seed}' for seed in seeds)]]
    same_versions = len({conditions.split('; ')[1] for _, conditions in rows}) == 1
    for (recipe, conditions), values in rows.items():
        text = conditions.split('; ')[0] if same_versions else conditions
        each = [f'{values[seed]:.1f}' if seed in values else DASH for seed in seeds]
        table.append([recipe, text, *each])
    text = 'The same runs under other conditions (mAP of single runs). They are not part of the comparison.'
    return [text, markdown_table(table, left=2)]


def publish(name: str, table: str, page: Path) -> None:
    """Replace the text between the marks of a study in a page by its table.

    Raises:
        UserError: The page has no marks of this study.
    """
    from mmkd.errors import UserError

    start, end = f'<!-- table of {name} -->\n', f'<!-- end of {name} -->'
    text = page.read_text(encoding='utf-8')
    if start not in text or end not in text:
        raise UserError(
            f'{page}: no lines {start.strip()} and {end}; add them where the table belongs'
        )
    before, rest = text.split(start, 1)
    page.write_text(f'{before}{start}\n{table}\n\n{end}{rest.split(end, 1)[1]}', encoding='utf-8')


def plot(study: Study, results: Results, path: Path) -> None:
    """Plot each run as a point, each recipe's mean with its interval, and the teacher as a line."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    from mmkd.analysis.statistics import interval

    found = comparable_lines(study, results)
    figure, axes = pyplot.subplots(figsize=(1.5 + 1.1 * len(found), 3.6), layout='constrained')
    for x, (_, lines) in enumerate(found.items()):
        values = [100 * line['mAP'] for line in lines.values()]
        mean, half = interval(values)
        axes.plot([x] * len(values), values, 'o', color='tab:gray', alpha=0.6, zorder=1)
        axes.errorbar(x, mean, 0 if half != half else half, fmt='_', capsize=5, color='black')
    lines = [line for runs in found.values() for line in runs.values()]
    teacher = results.line_of(study.teacher(), conditions_of(lines[0])) if lines else None
    if teacher:
        axes.axhline(100 * teacher['mAP'], color='tab:green', linestyle='--', label=TEACHER)
        axes.legend(frameon=False)
    axes.set_xticks(range(len(found)), list(found), rotation=30, ha='right')
    axes.set_ylabel('mAP')
    axes.set_title(f'{study.name}: runs, mean, 95 % interval', fontsize=10)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
