"""Tables and plots of studies, from their finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from study import BASELINE, TEACHER

if TYPE_CHECKING:
    from results import Results
    from steps import Steps
    from study import Study


def present(study: Study, results: Results) -> dict[str, dict[int, dict[str, Any]]]:
    """Lines by recipe and seed, of runs as the study declares them now; others are out of date."""
    trained = {line['seed'] for line in results.lines if line['recipe'] != TEACHER}
    seeds = sorted({*study.settings.seeds, *trained})
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for run in study.runs(None, seeds):
        line = results.of(run)
        if line is not None:
            found.setdefault(run.recipe, {})[run.seed] = line
    return found


def compare(study: Study, results: Results, steps: Steps | None = None) -> str:
    """The table of a study: means over seeds, and differences to the baseline of the same seeds.

    Where steps were measured, what one costs in steps of the student too.
    """
    from mmkd.analysis.tables import interval, markdown_table, with_error
    from mmkd.analysis.work_dir import METRICS

    found = present(study, results)
    costs = {}
    for run in study.runs(None, [study.settings.seeds[0]]) if steps and steps.lines else ():
        costs[run.recipe] = steps.of(run.digest)
    teacher = results.of(study.teacher())
    head = ['recipe', 'seeds', *METRICS, 'mAP over baseline', 'p', 'gap closed']
    rows = [head + ['step'] * bool(costs)]
    if teacher:
        scores = [f'{100 * teacher[name]:.1f}' for name in METRICS]
        rows.append([TEACHER, '1', *scores, *[''] * (3 + bool(costs))])
    for recipe, lines in found.items():
        cells = [recipe, str(len(lines))]
        for name in METRICS:
            mean, half = interval([100 * line[name] for line in lines.values()])
            cells.append(with_error(mean, half))
        other = study.settings.recipes[recipe].get('against', BASELINE)
        base = {seed: line['mAP'] for seed, line in found.get(other, {}).items()}
        cells += _difference(lines, base, teacher) if recipe != other else ['', '', '']
        if costs:
            line = costs.get(recipe)
            cells.append(f'{line["kd_step_s"] / line["student_step_s"]:.2f}' if line else '')
        rows.append(cells)
    note = (
        "± is half of the 95 % confidence interval of the mean (Student's t). Differences and p are paired "
        'by seed (two-sided t-test). Gap closed: the share of the way from baseline to teacher.'
    )
    if costs:
        note += (
            ' Step: how many times as long as the step of the student alone, forward and backward.'
        )
    return f'{markdown_table(rows)}\n\n{note}'


def _difference(
    lines: dict[int, dict[str, Any]], base: dict[int, float], teacher: dict[str, Any] | None
) -> list[str]:
    from scipy import stats

    from mmkd.analysis.tables import interval, with_error

    seeds = sorted(lines.keys() & base.keys())
    if not seeds:
        return ['', '', '']
    ours, theirs = [100 * lines[s]['mAP'] for s in seeds], [100 * base[s] for s in seeds]
    mean, half = interval([a - b for a, b in zip(ours, theirs, strict=True)])
    p = stats.ttest_rel(ours, theirs).pvalue if len(seeds) > 1 else float('nan')
    share = ''
    if teacher:
        gap = 100 * teacher['mAP'] - sum(theirs) / len(theirs)
        share = f'{100 * mean / gap:.0f} %' if gap > 0 else ''
    return [with_error(mean, half, signed=True), '' if p != p else f'{p:.3f}', share]


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

    from mmkd.analysis.tables import interval

    found = present(study, results)
    figure, axes = pyplot.subplots(figsize=(1.5 + 1.1 * len(found), 3.6), layout='constrained')
    for place, (_, lines) in enumerate(found.items()):
        values = [100 * line['mAP'] for line in lines.values()]
        mean, half = interval(values)
        axes.plot([place] * len(values), values, 'o', color='tab:gray', alpha=0.6, zorder=1)
        axes.errorbar(place, mean, 0 if half != half else half, fmt='_', capsize=5, color='black')
    teacher = results.of(study.teacher())
    if teacher:
        axes.axhline(100 * teacher['mAP'], color='tab:green', linestyle='--', label=TEACHER)
        axes.legend(frameon=False)
    axes.set_xticks(range(len(found)), list(found), rotation=30, ha='right')
    axes.set_ylabel('mAP')
    axes.set_title(f'{study.name}: runs, mean, 95 % interval', fontsize=10)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
