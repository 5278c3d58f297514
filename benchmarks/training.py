"""Train the runs of a study that have no result yet, each in its own process."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

from conditions import INSTRUCTIONS, THREADS, conditions_of, cores, environment, observe_process
from results import Results
from study import TEACHER, Run, Study, last_checkpoint

HERE = Path(__file__).resolve().parent


class Machine:
    """This machine, and how training runs use it.

    Args:
        device: ``cpu`` or ``cuda``. Default: the GPU if there is one.
        jobs: Training runs at a time. Default: one per core; one with a GPU.
        instructions: One of :data:`conditions.KNOWN_INSTRUCTIONS`.
        threads: Threads per training run.
    """

    def __init__(
        self,
        device: str | None,
        jobs: int | None,
        instructions: str = INSTRUCTIONS,
        threads: int = THREADS,
    ) -> None:
        import torch

        self.device = device
        self.environment = environment(instructions, threads)
        #: Versions, device and arithmetic, as lines of results record them.
        self.origin = observe_process(device, self.environment)
        self.conditions = conditions_of(self.origin)
        on_gpu = device != 'cpu' and torch.cuda.is_available()
        self.jobs = jobs or (1 if on_gpu else max(1, cores() // threads))


def prepare_teacher(
    study: Study,
    runs: list[Run],
    results: Results,
    machine: Machine,
    needed: bool = False,
    evaluate: bool = True,
) -> None:
    """Train the teacher, or evaluate a given one, if it has no result yet or if runs need its weights.

    Args:
        study: The study.
        runs: The runs that will be trained.
        results: The finished runs.
        machine: The machine that trains.
        needed: Whether the weights are needed even if all runs are finished.
        evaluate: Whether to evaluate a given teacher.

    Raises:
        UserError: Training or evaluation failed, or a given checkpoint is missing or another one.
    """
    from mmkd.errors import UserError

    teacher = study.teacher()
    no_result = results.line_of(teacher, machine.conditions) is None
    # A distilled run needs the teacher's weights, not only its result.
    needed = needed or any(
        results.line_of(run, machine.conditions) is None and run.config.model.type == 'Distiller'
        for run in runs
    )
    problems = []
    if not study.given_checkpoint:
        no_weights = needed and not last_checkpoint(teacher).is_file()
        problems = train([teacher], results, machine, force=no_weights)
    elif needed or (evaluate and no_result):
        check_given_teacher(study, teacher)
        if evaluate and no_result:
            problems = evaluate_given_teacher(study, teacher, results, machine)
    if problems:
        raise UserError(problems[0])


def train(runs: list[Run], results: Results, machine: Machine, force: bool = False) -> list[str]:
    """Train the runs that have no result yet.

    Args:
        runs: The runs.
        results: The finished runs; new lines are added.
        machine: The machine that trains.
        force: Train all runs, even those with a result.

    Returns:
        One line per run that failed.
    """
    missing = [run for run in runs if force or results.line_of(run, machine.conditions) is None]
    print(f'{len(runs) - len(missing)} of {len(runs)} runs are finished', flush=True)
    processes: list[subprocess.Popen] = []
    stopped = threading.Event()

    def train_unless_stopped(run: Run) -> str | None:
        return None if stopped.is_set() else train_one(run, results, machine, processes)

    with ThreadPoolExecutor(machine.jobs) as pool:
        try:
            return [problem for problem in pool.map(train_unless_stopped, missing) if problem]
        except BaseException:
            stopped.set()
            for process in processes:
                if process.poll() is None:
                    process.terminate()
            raise


def train_one(run: Run, results: Results, machine: Machine, processes: list) -> str | None:
    """Train a run in its own process, from the beginning: a resumed run ends with other weights.

    Returns:
        The last line of the log if the run failed, else None.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    run.config.dump(str(run.folder / 'config.py'))
    options = [str(run.folder / 'config.py'), '--work-dir', str(run.folder)]
    options += ['--device', machine.device] if machine.device else []
    tools = [['train.py', *options]]
    cache = (run.config.model.get('teacher') or {}).get('cache')
    if cache:
        tools.insert(0, ['cache_teacher.py', *options, '--yes'])  # does nothing if the cache exists
    print(f'{run.recipe}, seed {run.seed}: starts', flush=True)
    start = time.monotonic()
    log = run.folder / 'console.log'
    with open(log, 'a', encoding='utf-8') as out:
        for tool, *arguments in tools:
            command = [sys.executable, str(HERE.parent / 'tools' / tool), *arguments]
            # Runs that share a cache must not write it at the same time.
            with _cache_locks[cache] if tool == 'cache_teacher.py' else nullcontext():
                process = subprocess.Popen(command, stdout=out, stderr=out, env=machine.environment)
                processes.append(process)
                code = process.wait()
            if code:
                break
    seconds = round(time.monotonic() - start, 1)
    if code:
        last = (log.read_text(encoding='utf-8').strip().splitlines() or [''])[-1]
        return f'{run.recipe}, seed {run.seed}: {last} ({log})'
    line = results.add(run, final_metrics(run.folder), seconds, machine.origin)
    print(f'{run.recipe}, seed {run.seed}: mAP {100 * line["mAP"]:.1f}', flush=True)
    return None


# One lock per cache.
_cache_locks: dict[str, threading.Lock] = defaultdict(threading.Lock)


def check_given_teacher(study: Study, run: Run) -> None:
    """Check the checkpoint of a teacher that the study does not train, and write the teacher's config.

    Raises:
        UserError: The checkpoint does not exist or has another checksum.
    """
    from mmkd.errors import CheckpointError, MissingFileError

    checkpoint = study.given_checkpoint
    if checkpoint is None or not checkpoint.is_file():
        raise MissingFileError(
            f'{study.file}: teacher.checkpoint: no file {checkpoint}; set MMKD_WEIGHTS to the folder '
            f'that contains it'
        )
    if hashlib.sha256(checkpoint.read_bytes()).hexdigest() != study.settings.teacher.sha256:
        raise CheckpointError(
            f'{study.file}: teacher.sha256: {checkpoint} has another checksum; use the file of the study'
        )
    run.folder.mkdir(parents=True, exist_ok=True)
    run.config.dump(str(run.folder / 'config.py'))


def evaluate_given_teacher(study: Study, run: Run, results: Results, machine: Machine) -> list[str]:
    """Evaluate a teacher that the study does not train.

    Returns:
        The last line of the log if the evaluation failed, else nothing.
    """
    settings, checkpoint = study.settings.teacher, study.given_checkpoint
    if settings.get('whole'):
        checkpoint = keep_classes(settings.whole, checkpoint, run)
    command = [sys.executable, str(HERE.parent / 'tools' / 'test.py'), run.folder / 'config.py']
    command += [checkpoint, '--f1', '--work-dir', run.folder]
    command += ['--device', machine.device] if machine.device else []
    log, start = run.folder / 'console.log', time.monotonic()
    with open(log, 'w', encoding='utf-8') as out:
        words = list(map(str, command))
        if subprocess.run(words, stdout=out, stderr=out, env=machine.environment).returncode:
            last = (log.read_text(encoding='utf-8').strip().splitlines() or [''])[-1]
            return [f'{TEACHER}: {last} ({log})']
    found = sorted(path for path in run.folder.glob('*/*.json') if path.stem == path.parent.name)
    scores = json.loads(found[-1].read_text(encoding='utf-8'))
    from mmkd.analysis.work_dir import METRICS

    scores = {name: round(scores[key], 4) for name, key in METRICS.items()}
    line = results.add(run, scores, round(time.monotonic() - start, 1), machine.origin)
    print(f'{TEACHER}: mAP {100 * line["mAP"]:.1f}', flush=True)
    return []


def keep_classes(config: str, checkpoint: Path, run: Run) -> Path:
    """Write a checkpoint of a teacher with many classes that keeps only the classes of a run.

    Args:
        config: The teacher's config.
        checkpoint: The teacher's weights.
        run: A run with the same detector for fewer classes.

    Returns:
        The new checkpoint.
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
    """Scores of the last validation of a finished run."""
    from mmkd.analysis.work_dir import METRICS, read_scalars
    from mmkd.errors import UserError

    found = [line for line in read_scalars(folder) if METRICS['mAP'] in line]
    if not found:
        raise UserError(
            f'train_cfg.val_interval: the run in {folder} had no validation; set an interval that ends '
            f'with the run'
        )
    return {name: round(found[-1][key], 4) for name, key in METRICS.items()}
