"""Train the runs of a study that have no result yet, each in a process of its own."""

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

from conditions import INSTRUCTIONS, THREADS, alike, cores, environment, observed
from results import Results
from study import TEACHER, Run, Study, last_checkpoint

HERE = Path(__file__).resolve().parent


class Here:
    """This machine, and how training runs use it.

    Args:
        device: ``cpu``, ``cuda`` or None, where there is a GPU this.
        jobs: Training runs at a time; None is one per core, one with a GPU.
        instructions: One of :data:`conditions.KNOWN_INSTRUCTIONS`.
        threads: Per training run.
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
        self.where = observed(device, self.environment)
        #: With what arithmetic; see :func:`alike`.
        self.kind = alike(self.where)
        on_gpu = device != 'cpu' and torch.cuda.is_available()
        self.jobs = jobs or (1 if on_gpu else max(1, cores() // threads))


def prepare_teacher(
    study: Study,
    runs: list[Run],
    results: Results,
    here: Here,
    needed: bool = False,
    evaluate: bool = True,
) -> None:
    """Train the teacher, or evaluate one that is given, where that is not done or runs need it.

    Args:
        study: The teacher's.
        runs: Those that are to be there.
        results: What is there.
        here: Where it is trained.
        needed: Whether its weights are needed though all runs are there.
        evaluate: Whether a given one is evaluated, too.

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
    problems = []
    if not study.given:
        lost = needed and not last_checkpoint(teacher).is_file()
        problems = train([teacher], results, here, again=lost)
    elif needed or (evaluate and absent):
        check_given(study, teacher)
        if evaluate and absent:
            problems = test_given(study, teacher, results, here)
    if problems:
        raise UserError(problems[0])


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
    """Train one run in its own process, from the beginning: a resumed run ends with other weights."""
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
                process = subprocess.Popen(command, stdout=out, stderr=out, env=here.environment)
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


def check_given(study: Study, run: Run) -> None:
    """Write the config of a teacher that is not trained here, if its checkpoint is that of the study.

    Raises:
        UserError: It is not there, or is another.
    """
    from mmkd.errors import CheckpointError, MissingFileError

    checkpoint = study.given
    if checkpoint is None or not checkpoint.is_file():
        raise MissingFileError(
            f'{study.file}: there is no {checkpoint}; set MMKD_WEIGHTS to the folder that holds it'
        )
    if hashlib.sha256(checkpoint.read_bytes()).hexdigest() != study.settings.teacher.sha256:
        raise CheckpointError(f'{checkpoint} is not the one of {study.file} (teacher.sha256)')
    run.folder.mkdir(parents=True, exist_ok=True)
    run.config.dump(str(run.folder / 'config.py'))


def test_given(study: Study, run: Run, results: Results, here: Here) -> list[str]:
    """Evaluate a teacher that is not trained here; what went wrong, if anything."""
    settings, checkpoint = study.settings.teacher, study.given
    if settings.get('whole'):
        checkpoint = cut(settings.whole, checkpoint, run)
    command = [sys.executable, str(HERE.parent / 'tools' / 'test.py'), run.folder / 'config.py']
    command += [checkpoint, '--f1', '--work-dir', run.folder]
    command += ['--device', here.device] if here.device else []
    log, start = run.folder / 'console.log', time.monotonic()
    with open(log, 'w', encoding='utf-8') as out:
        words = list(map(str, command))
        if subprocess.run(words, stdout=out, stderr=out, env=here.environment).returncode:
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
