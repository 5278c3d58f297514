"""Repeat finished runs and compare the scores."""

from __future__ import annotations

import random

from comparing import comparable_lines
from conditions import OWN_TEACHER, conditions_of, differing_files
from results import Results
from study import Study
from training import Machine, prepare_teacher, train


def verify(
    study: Study,
    results: Results,
    machine: Machine,
    number: int,
    recipes: list[str] | None = None,
    seeds: list[int] | None = None,
) -> None:
    """Repeat some finished runs in a separate folder and compare the scores.

    With the same arithmetic, equal scores are expected. Otherwise mAP must be in the 99 % prediction interval
    of one more run of the recipe.

    Args:
        study: The study.
        results: The finished runs; no line is added.
        machine: The machine that repeats them.
        number: Number of runs, chosen at random.
        recipes: Choose from these recipes only.
        seeds: Choose from these seeds only.

    Raises:
        UserError: A score differs, or a run failed or cannot be compared.
    """
    from mmkd.analysis.statistics import prediction_interval
    from mmkd.analysis.work_dir import METRICS
    from mmkd.errors import ConfigError, UserError

    finished = comparable_lines(study, results)
    candidates = [
        (recipe, seed)
        for recipe in recipes or finished
        for seed in finished.get(recipe, {})
        if seeds is None or seed in seeds
    ]
    if not 1 <= number <= len(candidates):
        raise ConfigError(
            f'--verify: must be from 1 to {len(candidates)}, the number of finished runs, got {number}'
        )
    chosen = sorted(random.sample(candidates, number))
    repeated = Study(study.file, study.folder.parent / 'verified')
    repeated.data_root()
    lines = repeated.folder / 'results.jsonl'
    lines.unlink(missing_ok=True)
    new = Results(lines, study.name)
    runs = [run for recipe, seed in chosen for run in repeated.runs([recipe], [seed])]
    if any(run.config.model.type == 'Distiller' for run in runs):
        prepare_teacher(repeated, runs, new, machine, evaluate=False)
    failed = train(runs, new, machine)
    for run in runs:
        line, old = new.line_of(run, machine.conditions), finished[run.recipe][run.seed]
        if line is None:
            continue
        name, value = f'{run.recipe}, seed {run.seed}', 100 * line['mAP']
        low, high = prediction_interval([100 * one['mAP'] for one in finished[run.recipe].values()])
        # A teacher of the study itself was trained again too. Other arithmetic leads to another teacher.
        other = [name for name in differing_files([line, old]) if name != OWN_TEACHER]
        scores = f'{name}: mAP {value:.1f}, published {100 * old["mAP"]:.1f}'
        both = f'({machine.conditions}; published: {conditions_of(old)})'
        compared = (
            f'{scores}, {"in" if low <= value <= high else "outside"} the 99 % prediction interval '
            f'{low:.1f} to {high:.1f} {both}'
        )
        if other:
            failed.append(f'{name}: read other files than the published run: {", ".join(other)}')
        elif all(line[metric] == old[metric] for metric in METRICS):
            print(f'{name}: mAP {value:.1f}, identical to the published run')
        elif low <= value <= high:
            print(compared)
        elif low != low:  # NaN: a single published run has no interval
            failed.append(f'{scores}; a single published run has no prediction interval {both}')
        else:
            failed.append(compared)
    if failed:
        raise UserError('; '.join(failed))
    print(f'{len(runs)} of {len(runs)} runs reproduced')
