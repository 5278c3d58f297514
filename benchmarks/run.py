"""Train what a study asks for and is not trained yet, then compare: with error bars.

A study is a config file in benchmarks/studies/: one teacher, a baseline, recipes and seeds. Each
finished run is one line of benchmarks/results.jsonl; table and plot are made from those lines. Weights that
a study starts from lie in ./weights, or where the environment variable MMKD_WEIGHTS says.

Each training on a CPU has one thread and the same instructions everywhere, so that its result can be
had again to the last digit; `--verify N` trains N finished runs again and says whether that holds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / 'tools'), str(HERE)]

from claims import fill, pages  # noqa: E402
from comparing import compare, plot, present, publish  # noqa: E402
from conditions import (  # noqa: E402
    alike,
    commit,
    cores,
    device_name,
    differing_files,
    environment,
    observed,
    versions,
)
from results import Results  # noqa: E402
from steps import Steps, measure_step  # noqa: E402
from study import TEACHER, Run, Study, find_study, last_checkpoint  # noqa: E402

from _cli import run_tool  # noqa: E402

PAGE = HERE.parent / 'docs' / 'results.md'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='run.py',
        description=__doc__,
        epilog='Run again to go on after an interrupt: what is finished is not repeated, what is not starts '
        'from the beginning.',
        allow_abbrev=False,
    )
    parser.add_argument('study', help='a file in benchmarks/studies/, or its name')
    parser.add_argument('--recipes', nargs='+', help='only these (and the teacher)')
    parser.add_argument('--seeds', nargs='+', type=int, help="instead of the study's")
    parser.add_argument(
        '--jobs', type=int, help='trainings at a time (default: one a core, with a GPU one)'
    )
    parser.add_argument('--table', action='store_true', help='train nothing, show what is there')
    parser.add_argument(
        '--step-cost',
        action='store_true',
        help='measure what a step of each recipe costs (best on an idle machine); train nothing but '
        'the teacher',
    )
    parser.add_argument(
        '--verify',
        type=int,
        metavar='N',
        help='train N finished runs again, chosen at random, and compare; nothing is written down',
    )
    parser.add_argument(
        '--work-dir', default='work_dirs/benchmarks', help='where the trainings lie'
    )
    parser.add_argument(
        '--results',
        help='the file of finished runs (default: benchmarks/results.jsonl, of single trainings that '
        'settings were chosen from benchmarks/tuning.jsonl)',
    )
    parser.add_argument(
        '--device', choices=['cpu', 'cuda'], help='default: cuda where there is one'
    )
    parser.add_argument('--debug', action='store_true', help='show tracebacks of errors')
    parser.set_defaults(gpus=None, local_rank=0)
    return parser.parse_args()


def benchmark(args: argparse.Namespace) -> None:
    from mmkd.errors import UserError

    study = Study(find_study(args.study), Path(args.work_dir))
    path = Path(args.results) if args.results else lines_of(study)
    results = Results(path, study.name)
    steps = Steps(path.with_name('steps.jsonl'), study.name)
    runs = study.runs(args.recipes, args.seeds)
    if args.table:
        print(f'\n{compare(study, results, steps)}')
    elif args.verify is not None:
        verify(study, results, args)
        return
    else:
        study.data_root()
        here = Here(args.device, args.jobs)
        prepare_teacher(study, runs, results, here, needed=args.step_cost)
        if args.step_cost:
            measure_steps(study, steps, args.recipes)
        else:
            failed = train(runs, results, here)
            if failed:
                raise UserError(f'{len(failed)} trainings failed: {"; ".join(failed)}')
        print(f'\n{compare(study, results, steps, here.kind)}')
    if args.results is None and study.file.resolve().parent == HERE / 'studies':
        publish(study.name, compare(study, results, steps), PAGE)
        plot(study, results, PAGE.parent / f'{study.name}.png')
        for page in pages(HERE.parent):
            page.write_text(fill(page.read_text(encoding='utf-8'), load), encoding='utf-8')


def load(name: str) -> tuple[Study, Results]:
    """A study and its runs, as pages show them."""
    study = Study(find_study(name), Path('work_dirs/benchmarks'))
    return study, Results(lines_of(study), study.name)


def lines_of(study: Study) -> Path:
    """Where the finished runs of a shipped study are written down."""
    return HERE / ('tuning.jsonl' if study.file.parent.name == 'tuning' else 'results.jsonl')


class Here:
    """This machine, as trainings see it.

    Args:
        device: ``cpu``, ``cuda`` or None, where there is a GPU this.
        jobs: Trainings at a time; None is one a core, with a GPU one.
    """

    def __init__(self, device: str | None, jobs: int | None) -> None:
        import torch

        self.device = device
        self.where = observed(device)
        #: With what arithmetic; see :func:`alike`.
        self.kind = alike(self.where)
        on_gpu = device != 'cpu' and torch.cuda.is_available()
        self.jobs = jobs or (1 if on_gpu else cores())


def prepare_teacher(
    study: Study, runs: list[Run], results: Results, here: Here, needed: bool = False
) -> None:
    """Train the teacher, or evaluate one that is given, where that is not done or runs need it.

    Args:
        study: The teacher's.
        runs: Those that are to be there.
        results: What is there.
        here: Where it is trained.
        needed: Whether its weights are needed though all runs are there.

    Raises:
        UserError: It cannot be had.
    """
    from mmkd.errors import UserError

    teacher = study.teacher()
    absent = results.of(teacher, here.kind) is None
    # A distilled run needs the teacher's weights, not only its result.
    needed = needed or any(
        results.of(run, here.kind) is None and run.config.model.type == 'Distiller' for run in runs
    )
    if study.given:
        problems = test_given(study, teacher, results, here) if needed or absent else []
    else:
        lost = needed and not last_checkpoint(teacher).is_file()
        problems = train([teacher], results, here, again=lost)
    if problems:
        raise UserError(problems[0])


def measure_steps(study: Study, steps: Steps, recipes: list[str] | None) -> None:
    """Measure a step of every recipe that distils, one after the other."""
    for run in study.runs(recipes, [study.settings.seeds[0]]):
        if run.config.model.type == 'Distiller' and any(run.config.model.losses.values()):
            cost = measure_step(run.config)
            where = dict(git_commit=commit(), versions=versions(), device=device_name())
            line = steps.add(run.recipe, run.digest, cost, **where)
            ratio = line['kd_step_s'] / line['student_step_s']
            print(f'{run.recipe}: {ratio:.2f} times the step of the student', flush=True)


def train(runs: list[Run], results: Results, here: Here, again: bool = False) -> list[str]:
    """Train what has no result yet; returns what went wrong, a line a run."""
    missing = [run for run in runs if again or results.of(run, here.kind) is None]
    print(f'{len(runs) - len(missing)} of {len(runs)} runs are there', flush=True)
    processes: list[subprocess.Popen] = []
    stopped = threading.Event()

    def one(run: Run) -> str | None:
        return None if stopped.is_set() else train_one(run, results, here, processes)

    with ThreadPoolExecutor(here.jobs) as pool:
        try:
            return [problem for problem in pool.map(one, missing) if problem]
        except BaseException:
            stopped.set()
            for process in processes:
                if process.poll() is None:
                    process.terminate()
            raise


def train_one(run: Run, results: Results, here: Here, processes: list) -> str | None:
    """One training in a process of its own, from the beginning: one that is resumed ends elsewhere."""
    run.folder.mkdir(parents=True, exist_ok=True)
    run.config.dump(str(run.folder / 'config.py'))
    options = [str(run.folder / 'config.py'), '--work-dir', str(run.folder)]
    options += ['--device', here.device] if here.device else []
    tools = [['train.py', *options]]
    cache = (run.config.model.get('teacher') or {}).get('cache')
    if cache:
        tools.insert(0, ['cache_teacher.py', *options, '--yes'])  # at once if it is there
    print(f'{run.recipe}, seed {run.seed}: starts', flush=True)
    start = time.monotonic()
    log = run.folder / 'console.log'
    with open(log, 'a', encoding='utf-8') as out:
        for tool, *given in tools:
            command = [sys.executable, str(HERE.parent / 'tools' / tool), *given]
            # Runs that share a cache must not write it at the same time.
            with _writing[cache] if tool == 'cache_teacher.py' else nullcontext():
                process = subprocess.Popen(command, stdout=out, stderr=out, env=environment())
                processes.append(process)
                code = process.wait()
            if code:
                break
    seconds = round(time.monotonic() - start, 1)
    if code:
        last = (log.read_text(encoding='utf-8').strip().splitlines() or [''])[-1]
        return f'{run.recipe}, seed {run.seed}: {last} ({log})'
    line = results.add(run, final_metrics(run.folder), seconds, here.where)
    print(f'{run.recipe}, seed {run.seed}: mAP {100 * line["mAP"]:.1f}', flush=True)
    return None


# A lock for each cache.
_writing: dict[str, threading.Lock] = defaultdict(threading.Lock)


def verify(study: Study, results: Results, args: argparse.Namespace) -> None:
    """Train some finished runs again, apart from all others, and say whether they fall where they should.

    With the same arithmetic the metrics are to be the same to the last digit. Where they are not, mAP is to
    lie where one more run of the recipe would with a probability of 99 %.

    Raises:
        UserError: One does not, or none can be compared.
    """
    from mmkd.analysis.statistics import prediction_interval
    from mmkd.analysis.work_dir import METRICS
    from mmkd.errors import ConfigError, UserError

    finished = present(study, results)
    recipes = args.recipes or list(finished)
    known = [
        (recipe, seed)
        for recipe in recipes
        for seed in finished.get(recipe, {})
        if args.seeds is None or seed in args.seeds
    ]
    if not 1 <= args.verify <= len(known):
        raise ConfigError(
            f'--verify: must be from 1 to {len(known)}, so many finished runs there are, got {args.verify}'
        )
    chosen = sorted(random.sample(known, args.verify))
    again = Study(study.file, Path(args.work_dir) / 'verified')
    again.data_root()
    lines = again.folder / 'results.jsonl'
    lines.unlink(missing_ok=True)
    new = Results(lines, study.name)
    here = Here(args.device, args.jobs)
    runs = [run for recipe, seed in chosen for run in again.runs([recipe], [seed])]
    if any(run.config.model.type == 'Distiller' for run in runs):
        prepare_teacher(again, runs, new, here)
    failed = train(runs, new, here)
    for run in runs:
        line, old = new.of(run, here.kind), finished[run.recipe][run.seed]
        if line is None:
            continue
        name, value = f'{run.recipe}, seed {run.seed}', 100 * line['mAP']
        low, high = prediction_interval([100 * one['mAP'] for one in finished[run.recipe].values()])
        other = differing_files([line, old])
        if other:
            failed.append(f'{name}: other files than the published run read, {", ".join(other)}')
        elif all(line[metric] == old[metric] for metric in METRICS):
            print(f'{name}: mAP {value:.1f}, the same to the last digit')
        elif low <= value <= high:
            print(
                f'{name}: mAP {value:.1f}, published {100 * old["mAP"]:.1f}, within {low:.1f} to {high:.1f} '
                f'({here.kind}; published: {alike(old)})'
            )
        else:
            failed.append(
                f'{name}: mAP {value:.1f}, published {100 * old["mAP"]:.1f}, not within {low:.1f} to '
                f'{high:.1f}, where one more run should be ({here.kind}; published: {alike(old)})'
            )
    if failed:
        raise UserError('; '.join(failed))
    print(f'{len(runs)} of {len(runs)} runs fall where they should')


def test_given(study: Study, run: Run, results: Results, here: Here) -> list[str]:
    """Evaluate a teacher that is not trained here, where that is not done; what went wrong, if anything.

    Raises:
        UserError: Its checkpoint is not there, or is another than the study's.
    """
    from mmkd.errors import CheckpointError, MissingFileError

    settings, checkpoint = study.settings.teacher, study.given
    if not checkpoint.is_file():
        raise MissingFileError(
            f'{study.file}: there is no {checkpoint}; set MMKD_WEIGHTS to the folder that holds it'
        )
    if hashlib.sha256(checkpoint.read_bytes()).hexdigest() != settings.sha256:
        raise CheckpointError(f'{checkpoint} is not the one of {study.file} (teacher.sha256)')
    run.folder.mkdir(parents=True, exist_ok=True)
    run.config.dump(str(run.folder / 'config.py'))
    if results.of(run, here.kind) is not None:
        return []
    if settings.get('whole'):
        checkpoint = cut(settings.whole, checkpoint, run)
    command = [sys.executable, str(HERE.parent / 'tools' / 'test.py'), run.folder / 'config.py']
    command += [checkpoint, '--f1', '--work-dir', run.folder]
    command += ['--device', here.device] if here.device else []
    log, start = run.folder / 'console.log', time.monotonic()
    with open(log, 'w', encoding='utf-8') as out:
        words = list(map(str, command))
        if subprocess.run(words, stdout=out, stderr=out, env=environment()).returncode:
            last = (log.read_text(encoding='utf-8').strip().splitlines() or [''])[-1]
            return [f'{TEACHER}: {last} ({log})']
    found = sorted(path for path in run.folder.glob('*/*.json') if path.stem == path.parent.name)
    scores = json.loads(found[-1].read_text(encoding='utf-8'))
    from mmkd.analysis.work_dir import METRICS

    scores = {name: round(scores[key], 4) for name, key in METRICS.items()}
    line = results.add(run, scores, round(time.monotonic() - start, 1), here.where)
    print(f'{TEACHER}: mAP {100 * line["mAP"]:.1f}', flush=True)
    return []


def cut(config: str, checkpoint: Path, run: Run) -> Path:
    """A checkpoint of what a teacher of many classes says of those of a run, for its evaluation.

    Args:
        config: The teacher's.
        checkpoint: Its weights.
        run: Whose model is the same detector for fewer classes.
    """
    import torch
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    from mmkd.alignments import ClassMap
    from mmkd.distillers.inheritance import inherit
    from mmkd.teachers import LiveTeacher
    from mmkd.teachers.config import config_classes

    init_default_scope('mmdet')
    teacher, classes = LiveTeacher(config, str(checkpoint)), config_classes(run.config)
    model = MODELS.build(run.config.model)
    parts = [name for name, part in model.named_children() if list(part.parameters())]
    inherit(model, teacher.detector, parts, ClassMap(classes, teacher.classes))
    path = run.folder / 'teacher.pth'
    meta = dict(dataset_meta=dict(classes=tuple(classes)))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    return path


def final_metrics(folder: Path) -> dict[str, float]:
    """What the last validation of a finished training gave."""
    from mmkd.analysis.work_dir import METRICS, read_scalars
    from mmkd.errors import UserError

    found = [line for line in read_scalars(folder) if METRICS['mAP'] in line]
    if not found:
        raise UserError(f'{folder}: no validation; set train_cfg.val_interval so that one ends it')
    return {name: round(found[-1][key], 4) for name, key in METRICS.items()}


if __name__ == '__main__':
    run_tool(benchmark, parse_args())
