"""Train what a study asks for and is not trained yet, then compare: with error bars.

A study is a config file in benchmarks/studies/: one teacher, a baseline, recipes and seeds. Each
finished run is one line of benchmarks/results.jsonl; table and plot are made from those lines. Weights that
a study starts from lie in ./weights, or where the environment variable MMKD_WEIGHTS says.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
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

from comparing import compare, plot, publish  # noqa: E402
from results import Results, commit, cores, device_name, versions  # noqa: E402
from steps import Steps, measure_step  # noqa: E402
from study import TEACHER, Run, Study, find_study, last_checkpoint  # noqa: E402

from _cli import run_tool  # noqa: E402

PAGE = HERE.parent / 'docs' / 'results.md'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='run.py',
        description=__doc__,
        epilog='Run again to go on after an interrupt: what is finished is not repeated.',
        allow_abbrev=False,
    )
    parser.add_argument('study', help='a file in benchmarks/studies/, or its name')
    parser.add_argument('--recipes', nargs='+', help='only these (and the teacher)')
    parser.add_argument('--seeds', nargs='+', type=int, help="instead of the study's")
    parser.add_argument('--jobs', type=int, default=1, help='trainings at a time (default: 1)')
    parser.add_argument('--table', action='store_true', help='train nothing, show what is there')
    parser.add_argument(
        '--step-cost',
        action='store_true',
        help='measure what a step of each recipe costs (best on an idle machine); train nothing but '
        'the teacher',
    )
    parser.add_argument(
        '--work-dir', default='work_dirs/benchmarks', help='where the trainings lie'
    )
    parser.add_argument(
        '--results', default=str(HERE / 'results.jsonl'), help='the file of finished runs'
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
    results = Results(Path(args.results), study.name)
    steps = Steps(Path(args.results).with_name('steps.jsonl'), study.name)
    runs = [study.teacher(), *study.runs(args.recipes, args.seeds)]
    if not args.table:
        study.data_root()
        teacher = runs[0]
        # A distilled run needs the teacher's weights, not only its result.
        needed = args.step_cost or any(
            results.of(r) is None and r.config.model.type == 'Distiller' for r in runs
        )
        if study.given:
            wanted = needed or results.of(teacher) is None
            problems = test_given(study, teacher, results, args.device) if wanted else []
        else:
            lost = needed and not last_checkpoint(teacher).is_file()
            problems = train([teacher], results, 1, args.device, again=lost)
        if problems:
            raise UserError(problems[0])
        if args.step_cost:
            measure_steps(study, steps, args.recipes)
        else:
            failed = train(runs[1:], results, args.jobs, args.device)
            if failed:
                raise UserError(f'{len(failed)} trainings failed: {"; ".join(failed)}')
    table = compare(study, results, steps)
    print(f'\n{table}')
    if args.results == str(HERE / 'results.jsonl'):
        publish(study.name, table, PAGE)
        plot(study, results, PAGE.parent / f'{study.name}.png')


def measure_steps(study: Study, steps: Steps, recipes: list[str] | None) -> None:
    """Measure a step of every recipe that distils, one after the other."""
    for run in study.runs(recipes, [study.settings.seeds[0]]):
        if run.config.model.type == 'Distiller' and any(run.config.model.losses.values()):
            cost = measure_step(run.config)
            where = dict(git_commit=commit(), versions=versions(), device=device_name())
            line = steps.add(run.recipe, run.digest, cost, **where)
            ratio = line['kd_step_s'] / line['student_step_s']
            print(f'{run.recipe}: {ratio:.2f} times the step of the student', flush=True)


def train(
    runs: list[Run], results: Results, jobs: int, device: str | None, again: bool = False
) -> list[str]:
    """Train what has no result yet; returns what went wrong, a line a run."""
    missing = [run for run in runs if again or results.of(run) is None]
    print(f'{len(runs) - len(missing)} of {len(runs)} runs are there', flush=True)
    processes: list[subprocess.Popen] = []
    stopped = threading.Event()

    def one(run: Run) -> str | None:
        if stopped.is_set():
            return None
        threads = max(1, cores() // jobs)
        return train_one(run, results, device, threads, processes)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            return [problem for problem in pool.map(one, missing) if problem]
        except BaseException:
            stopped.set()
            for process in processes:
                if process.poll() is None:
                    process.terminate()
            raise


def train_one(
    run: Run, results: Results, device: str | None, threads: int, processes: list
) -> str | None:
    """One training in a process of its own, from where it was interrupted if it was."""
    run.folder.mkdir(parents=True, exist_ok=True)
    run.config.dump(str(run.folder / 'config.py'))
    resumed = (run.folder / 'last_checkpoint').is_file()
    options = [str(run.folder / 'config.py'), '--work-dir', str(run.folder)]
    options += ['--device', device] if device else []
    tools = [['train.py', *options, *['--resume'] * resumed]]
    cache = (run.config.model.get('teacher') or {}).get('cache')
    if cache:
        tools.insert(0, ['cache_teacher.py', *options, '--yes'])  # at once if it is there
    print(f'{run.recipe}, seed {run.seed}: {"goes on" if resumed else "starts"}', flush=True)
    clock = run.folder / 'seconds.json'
    spent = json.loads(clock.read_text()) if clock.is_file() and resumed else 0.0
    start = time.monotonic()
    env = {'OMP_NUM_THREADS': str(threads), 'OMP_WAIT_POLICY': 'PASSIVE', **os.environ}
    log = run.folder / 'console.log'
    try:
        with open(log, 'a', encoding='utf-8') as out:
            for tool, *given in tools:
                command = [sys.executable, str(HERE.parent / 'tools' / tool), *given]
                # Runs that share a cache must not write it at the same time.
                with _writing[cache] if tool == 'cache_teacher.py' else nullcontext():
                    process = subprocess.Popen(command, stdout=out, stderr=out, env=env)
                    processes.append(process)
                    code = process.wait()
                if code:
                    break
    finally:
        seconds = round(spent + time.monotonic() - start, 1)
        clock.write_text(json.dumps(seconds))
    if code:
        last = (log.read_text(encoding='utf-8').strip().splitlines() or [''])[-1]
        return f'{run.recipe}, seed {run.seed}: {last} ({log})'
    line = results.add(run, final_metrics(run.folder), seconds)
    print(f'{run.recipe}, seed {run.seed}: mAP {100 * line["mAP"]:.1f}', flush=True)
    return None


# A lock for each cache.
_writing: dict[str, threading.Lock] = defaultdict(threading.Lock)


def test_given(study: Study, run: Run, results: Results, device: str | None) -> list[str]:
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
    if results.of(run) is not None:
        return []
    if settings.get('whole'):
        checkpoint = cut(settings.whole, checkpoint, run)
    command = [sys.executable, str(HERE.parent / 'tools' / 'test.py'), run.folder / 'config.py']
    command += [
        checkpoint,
        '--f1',
        '--work-dir',
        run.folder,
        *['--device', str(device)] * bool(device),
    ]
    log, start = run.folder / 'console.log', time.monotonic()
    with open(log, 'w', encoding='utf-8') as out:
        if subprocess.run(list(map(str, command)), stdout=out, stderr=out).returncode:
            last = (log.read_text(encoding='utf-8').strip().splitlines() or [''])[-1]
            return [f'{TEACHER}: {last} ({log})']
    found = sorted(path for path in run.folder.glob('*/*.json') if path.stem == path.parent.name)
    scores = json.loads(found[-1].read_text(encoding='utf-8'))
    from mmkd.analysis.work_dir import METRICS

    scores = {name: round(scores[key], 4) for name, key in METRICS.items()}
    line = results.add(run, scores, round(time.monotonic() - start, 1))
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
