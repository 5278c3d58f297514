"""Repeat finished runs and compare the scores."""

from __future__ import annotations

import random

from comparing import present
from conditions import OWN_TEACHER, alike, differing_files
from results import Results
from study import Study
from training import Here, prepare_teacher, train


def verify(
    study: Study,
    results: Results,
    here: Here,
    number: int,
    recipes: list[str] | None = None,
    seeds: list[int] | None = None,
) -> None:
    """Repeat some finished runs in a separate folder and compare the scores.

    With the same arithmetic, equal scores are expected. Otherwise mAP must lie in the 99 % prediction
    interval of one more run of the recipe.

    Args:
        study: Whose runs.
        results: Holds the finished runs; nothing is added.
        here: The machine that repeats them.
        number: How many, chosen at random.
        recipes: Only these.
        seeds: Only these.

    Raises:
        UserError: One does not, or none can be compared.
    """
    from mmkd.analysis.statistics import prediction_interval
    from mmkd.analysis.work_dir import METRICS
    from mmkd.errors import ConfigError, UserError

    finished = present(study, results)
    known = [
        (recipe, seed)
        for recipe in recipes or finished
        for seed in finished.get(recipe, {})
        if seeds is None or seed in seeds
    ]
    if not 1 <= number <= len(known):
        raise ConfigError(
            f'--verify: must be from 1 to {len(known)}, the number of finished runs, got {number}'
        )
    chosen = sorted(random.sample(known, number))
    again = Study(study.file, study.folder.parent / 'verified')
    again.data_root()
    lines = again.folder / 'results.jsonl'
    lines.unlink(missing_ok=True)
    new = Results(lines, study.name)
    runs = [run for recipe, seed in chosen for run in again.runs([recipe], [seed])]
    if any(run.config.model.type == 'Distiller' for run in runs):
        prepare_teacher(again, runs, new, here, evaluate=False)
    failed = train(runs, new, here)
    for run in runs:
        line, old = new.of(run, here.kind), finished[run.recipe][run.seed]
        if line is None:
            continue
        name, value = f'{run.recipe}, seed {run.seed}', 100 * line['mAP']
        low, high = prediction_interval([100 * one['mAP'] for one in finished[run.recipe].values()])
        # A teacher that the study has trained is trained again too, and is another with other arithmetic.
        other = [name for name in differing_files([line, old]) if name != OWN_TEACHER]
        compared = (
            f'{name}: mAP {value:.1f}, published {100 * old["mAP"]:.1f}, '
            f'{"in" if low <= value <= high else "outside"} the 99 % prediction interval '
            f'{low:.1f} to {high:.1f} ({here.kind}; published: {alike(old)})'
        )
        if other:
            failed.append(f'{name}: read other files than the published run: {", ".join(other)}')
        elif all(line[metric] == old[metric] for metric in METRICS):
            print(f'{name}: mAP {value:.1f}, identical to the published run')
        elif low <= value <= high:
            print(compared)
        elif low != low:  # one published run has no interval
            failed.append(
                f'{name}: mAP {value:.1f}, published {100 * old["mAP"]:.1f}, and one published run has no '
                f'prediction interval ({here.kind}; published: {alike(old)})'
            )
        else:
            failed.append(compared)
    if failed:
        raise UserError('; '.join(failed))
    print(f'{len(runs)} of {len(runs)} runs reproduced')
