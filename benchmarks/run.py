"""Train the missing runs of a study and compare its recipes, with confidence intervals.

A study is a config file in benchmarks/studies/: one teacher, a baseline, recipes and seeds. Each
finished run is one line of benchmarks/results.jsonl; table and plot are generated from those lines. Weights
that a study starts from are read from ./weights, or from the folder in the environment variable MMKD_WEIGHTS.

On a CPU every training run uses one thread and the same instruction set, so that its result can be
reproduced to the last digit. `--verify N` repeats N finished runs and compares.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / 'tools'), str(HERE)]

from claims import fill, pages  # noqa: E402
from comparing import compare, plot, publish  # noqa: E402
from conditions import (  # noqa: E402
    INSTRUCTIONS,
    KNOWN_INSTRUCTIONS,
    THREADS,
    commit,
    device_name,
    versions,
)
from results import Results  # noqa: E402
from steps import Steps, measure_step  # noqa: E402
from study import Study, find_study  # noqa: E402
from training import Machine, prepare_teacher, train  # noqa: E402
from verifying import verify  # noqa: E402

from _cli import run_tool  # noqa: E402

PAGE = HERE.parent / 'docs' / 'recipes' / 'results.md'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='run.py',
        description=__doc__,
        epilog='After an interrupt, run the same command again: finished runs are not repeated, unfinished '
        'runs start from the beginning.',
        allow_abbrev=False,
    )
    parser.add_argument('study', help='a file in benchmarks/studies/, or its name')
    parser.add_argument('--recipes', nargs='+', help='only these recipes (and the teacher)')
    parser.add_argument('--seeds', nargs='+', type=int, help='seeds (default: those of the study)')
    parser.add_argument(
        '--jobs', type=int, help='training runs at a time (default: one per core, one with a GPU)'
    )
    parser.add_argument(
        '--table', action='store_true', help='only print the table of finished runs'
    )
    parser.add_argument(
        '--step-cost',
        action='store_true',
        help='measure the duration of a step of each recipe (on an idle machine); train only the teacher',
    )
    parser.add_argument(
        '--verify',
        type=int,
        metavar='N',
        help='repeat N finished runs, chosen at random, and compare; records nothing',
    )
    parser.add_argument(
        '--work-dir', default='work_dirs/benchmarks', help='where the training runs are stored'
    )
    parser.add_argument(
        '--results',
        help='the file of finished runs (default: benchmarks/results.jsonl, for studies in '
        'studies/tuning/ benchmarks/tuning.jsonl)',
    )
    parser.add_argument('--device', choices=['cpu', 'cuda'], help='default: cuda if there is a GPU')
    parser.add_argument(
        '--instructions',
        choices=KNOWN_INSTRUCTIONS,
        default=INSTRUCTIONS,
        help=f'instruction set of the processor (default: {INSTRUCTIONS}); another one is another '
        f'experiment',
    )
    parser.add_argument(
        '--threads',
        type=int,
        default=THREADS,
        help=f'threads per training run (default: {THREADS}); another number is another experiment',
    )
    parser.add_argument('--debug', action='store_true', help='show tracebacks of errors')
    parser.set_defaults(gpus=None, local_rank=0)
    args = parser.parse_args()
    for name in ('jobs', 'threads'):
        if (value := getattr(args, name)) is not None and value < 1:
            parser.error(f'--{name}: must be at least 1, got {value}')
    return args


def benchmark(args: argparse.Namespace) -> None:
    from mmkd.errors import UserError

    study = Study(find_study(args.study), Path(args.work_dir))
    path = Path(args.results) if args.results else results_file(study)
    results = Results(path, study.name)
    steps = Steps(path.with_name('steps.jsonl'), study.name)
    if not args.table and args.verify is None:
        study.data_root()
    runs = study.runs(args.recipes, args.seeds)
    if args.table:
        print(f'\n{compare(study, results, steps)}')
    elif args.verify is not None:
        machine = Machine(args.device, args.jobs, args.instructions, args.threads)
        verify(study, results, machine, args.verify, args.recipes, args.seeds)
        return
    else:
        machine = Machine(args.device, args.jobs, args.instructions, args.threads)
        prepare_teacher(study, runs, results, machine, needed=args.step_cost)
        if args.step_cost:
            measure_steps(study, steps, args.recipes)
        else:
            failed = train(runs, results, machine)
            if failed:
                raise UserError(f'{len(failed)} training runs failed: {"; ".join(failed)}')
        print(f'\n{compare(study, results, steps, machine.conditions)}')
    if args.results is None and study.file.resolve().parent == HERE / 'studies':
        publish(study.name, compare(study, results, steps), PAGE)
        plot(study, results, PAGE.parent / f'{study.name}.png')
        for page in pages(HERE.parent):
            page.write_text(fill(page.read_text(encoding='utf-8'), load_study), encoding='utf-8')


def load_study(name: str) -> tuple[Study, Results]:
    """A study and its published runs."""
    study = Study(find_study(name), Path('work_dirs/benchmarks'))
    return study, Results(results_file(study), study.name)


def results_file(study: Study) -> Path:
    """The default file for the finished runs of a study."""
    return HERE / ('tuning.jsonl' if study.file.parent.name == 'tuning' else 'results.jsonl')


def measure_steps(study: Study, steps: Steps, recipes: list[str] | None) -> None:
    """Measure a step of every recipe that distils, one after the other."""
    for run in study.runs(recipes, [study.settings.seeds[0]]):
        if run.config.model.type == 'Distiller' and any(run.config.model.losses.values()):
            cost = measure_step(run.config)
            origin = dict(git_commit=commit(), versions=versions(), device=device_name())
            line = steps.add(run.recipe, run.digest, cost, **origin)
            ratio = line['kd_step_s'] / line['student_step_s']
            print(f'{run.recipe}: {ratio:.2f} times the step of the student', flush=True)


if __name__ == '__main__':
    run_tool(benchmark, parse_args())
