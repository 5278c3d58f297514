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
import platform
import subprocess
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / 'tools'), str(HERE)]

from held_out import hold_out  # noqa: E402
from steps import Steps, measure_step  # noqa: E402

from _cli import run_tool  # noqa: E402

if TYPE_CHECKING:
    from mmengine.config import Config

PAGE = HERE.parent / 'docs' / 'results.md'
TEACHER, BASELINE = 'teacher', 'baseline'
METRICS = {'mAP': 'coco/bbox_mAP', 'AP50': 'coco/bbox_mAP_50', 'F1': 'coco/bbox_F1'}
# What a config says about this machine, or about where a run lies, is no part of the experiment.
PLACES = ('work_dir', 'data_root', 'log_level', 'launcher', 'resume', 'load_from')


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


@dataclass
class Run:
    """One training of a study.

    Args:
        recipe: ``teacher``, ``baseline`` or the recipe's name.
        seed: Seed of the training.
        config: Its whole config.
        folder: Its work directory.
        digest: Hash of all that makes the experiment, from which the same run is recognised.
    """

    recipe: str
    seed: int
    config: Config
    folder: Path
    digest: str


class Study:
    """A study file, and where its runs lie.

    Args:
        path: The file.
        work_dir: Folder of all studies' trainings.

    Raises:
        UserError: The file is not there or lacks something.
    """

    def __init__(self, path: Path, work_dir: Path) -> None:
        from mmengine.config import Config

        from mmkd.errors import ConfigError

        self.name, self.file = path.stem, path
        self.settings = Config.fromfile(str(path))
        absent = [key for key in ('teacher', 'recipes', 'seeds') if key not in self.settings]
        if absent or BASELINE not in self.settings.recipes:
            raise ConfigError(f'{path}: {", ".join(absent) or "recipes.baseline"} not given')
        self.folder = work_dir / self.name

    def data_root(self) -> str | None:
        """Where the study's data lies; drawn first if it is to be drawn."""
        drawn = self.settings.get('drawn_scenes')
        if drawn is None:
            return self.settings.get('data_root')
        from mmkd.datasets import DrawnScenesSettings, prepare_drawn_scenes

        folder = self.folder / 'data'
        prepare_drawn_scenes(folder, DrawnScenesSettings(**drawn))
        return f'{folder}/'

    @property
    def given(self) -> Path | None:
        """The checkpoint of a teacher that is not trained here."""
        checkpoint = self.settings.teacher.get('checkpoint')
        return None if checkpoint is None else Path(checkpoint)

    def teacher(self) -> Run:
        settings = self.settings.teacher
        known = [settings.sha256] if self.given else []
        return self._run(TEACHER, settings.get('seed', 0), settings, {}, *known)

    def runs(self, recipes: list[str] | None, seeds: list[int] | None) -> list[Run]:
        """The runs asked for, seed by seed, so that an interrupted study can be compared too.

        Raises:
            ConfigError: The study has no such recipe.
        """
        from mmkd.errors import ConfigError, near

        known = self.settings.recipes
        for name in recipes or ():
            if name not in known:
                raise ConfigError(f"{self.file} has no recipe '{name}'{near(name, known)}")
        teacher = self.teacher()
        own_config = str(teacher.folder / 'config.py')
        taught = {
            'model.teacher.checkpoint': str(self.given or last_checkpoint(teacher)),
            'model.teacher.config': self.settings.teacher.get('whole', own_config),
        }
        return [
            self._run(name, seed, known[name], taught, teacher.digest)
            for seed in seeds or self.settings.seeds
            for name in recipes or known
        ]

    def _run(
        self, recipe: str, seed: int, settings: Any, taught: dict[str, str], *digests: str
    ) -> Run:
        from mmengine.config import Config

        from mmkd.datasets.preflight import replace_data_root
        from mmkd.reporting.work_dir import essence

        root = HERE.parent
        cfg = Config.fromfile(str(root / settings.config))
        options = dict(self.settings.get('options') or {})
        options.update(settings.get('options') or {})
        cfg.merge_from_dict(options)
        cfg.merge_from_dict({'randomness.seed': seed})
        cfg.merge_from_dict({'val_evaluator.type': 'CocoF1Metric'})
        cfg.setdefault('custom_imports', dict(imports=['mmkd'], allow_failed_imports=False))
        distils = cfg.model.type == 'Distiller'
        whole = cfg.to_dict()
        for teacher in (
            whole['model'].get('teacher'),
            *whole['model'].get('teachers', {}).values(),
        ):
            if teacher and 'checkpoint' in teacher and 'config' in teacher:
                del teacher['checkpoint'], teacher['config']  # its digest says what it is
        content = essence(essence(whole, PLACES, cfg.get('data_root')), (), f'{weights_folder()}/')
        content = [content, *digests * (distils or recipe == TEACHER)]
        content += ['cached'] if settings.get('cached') else []
        held_out = self.settings.get('held_out')
        content += [f'{held_out} held out'] if held_out else []
        drawn = json.dumps((self.settings.get('drawn_scenes') or {}), sort_keys=True)
        digest = _digest(json.dumps(content, sort_keys=True) + drawn)
        data = self.folder / 'data' if 'drawn_scenes' in self.settings else None
        data = f'{data}/' if data else self.settings.get('data_root')
        if data:
            replace_data_root(cfg, data)
        if distils:
            cfg.merge_from_dict(taught)
        if held_out and Path(cfg.get('data_root') or '').is_dir():
            hold_out(cfg, held_out, self.folder / 'held_out')
        folder = self.folder / f'{recipe}_seed{seed}_{digest}'
        cfg.work_dir = str(folder)
        if settings.get('cached'):
            content[0].pop('randomness')  # seeds share what the teacher said
            name = f'cache_{recipe}_{_digest(json.dumps(content, sort_keys=True) + drawn)}'
            cfg.merge_from_dict({'model.teacher.cache': str(self.folder / name)})
        return Run(recipe, seed, cfg, folder, digest)


# ------------------------------------------------------------------------------------ training


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
            where = dict(git_commit=_commit(), versions=_versions(), device=_device())
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
        threads = max(1, _cores() // jobs)
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
    from mmkd.distillers import Teacher
    from mmkd.distillers.inheritance import inherit
    from mmkd.distillers.teacher import config_classes

    init_default_scope('mmdet')
    teacher, classes = Teacher(config, str(checkpoint)), config_classes(run.config)
    model = MODELS.build(run.config.model)
    parts = [name for name, part in model.named_children() if list(part.parameters())]
    inherit(model, teacher.detector, parts, ClassMap(classes, teacher.classes))
    path = run.folder / 'teacher.pth'
    meta = dict(dataset_meta=dict(classes=tuple(classes)))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    return path


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def weights_folder() -> str:
    """Where weights lie that studies start from, as configs have it."""
    return os.environ.get('MMKD_WEIGHTS', 'weights').rstrip('/')


def final_metrics(folder: Path) -> dict[str, float]:
    """What the last validation of a finished training gave."""
    from mmkd.errors import UserError
    from mmkd.reporting.work_dir import read_scalars

    found = [line for line in read_scalars(folder) if METRICS['mAP'] in line]
    if not found:
        raise UserError(f'{folder}: no validation; set train_cfg.val_interval so that one ends it')
    return {name: round(found[-1][key], 4) for name, key in METRICS.items()}


def last_checkpoint(run: Run) -> Path:
    """The checkpoint that a finished training of ``run`` leaves behind."""
    cfg = run.config.train_cfg
    name = f'epoch_{cfg.max_epochs}.pth' if cfg.get('max_epochs') else f'iter_{cfg.max_iters}.pth'
    return run.folder / name


def find_study(name: str) -> Path:
    """The file of a study.

    Raises:
        MissingFileError: There is none of that name.
    """
    from mmkd.errors import MissingFileError

    known = sorted((HERE / 'studies').glob('*.py'))
    for path in (Path(name), *known):
        if path.is_file() and (path == Path(name) or path.stem == name):
            return path
    raise MissingFileError(
        f'no study {name}; there are {", ".join(path.stem for path in known)} in {HERE / "studies"}'
    )


# ------------------------------------------------------------------------------------ results


class Results:
    """The finished runs, a line each in a file that all studies share.

    What another study has run with the same config, teacher and seed is not run again.

    Args:
        path: The file; it need not exist.
        study: The study's name.
    """

    def __init__(self, path: Path, study: str) -> None:
        self.path, self.study = path, study
        self._lock = threading.Lock()
        text = path.read_text(encoding='utf-8') if path.is_file() else ''
        self._every = [json.loads(line) for line in text.splitlines()]

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Those of the study itself."""
        return [line for line in self._every if line['study'] == self.study]

    def of(self, run: Run) -> dict[str, Any] | None:
        """The line of a run, or None while there is none."""
        key = run.digest, run.seed
        found = [each for each in self._every if (each['config_hash'], each['seed']) == key]
        own = [line for line in found if line['study'] == self.study]
        return (own or found or [None])[-1]

    def add(self, run: Run, metrics: dict[str, float], seconds: float) -> dict[str, Any]:
        line = dict(
            study=self.study,
            recipe=run.recipe,
            seed=run.seed,
            **metrics,
            config_hash=run.digest,
            git_commit=_commit(),
            versions=_versions(),
            device=_device(),
            seconds=seconds,
        )
        with self._lock:
            with open(self.path, 'a', encoding='utf-8') as file:
                file.write(json.dumps(line) + '\n')
            self._every.append(line)
        return line


def _commit() -> str:
    """The commit the code is at, marked if the code differs from it."""

    def git(*words: str) -> str:
        done = subprocess.run(['git', *words], cwd=HERE.parent, capture_output=True, text=True)
        return done.stdout.strip()

    changed = git('status', '--porcelain', '--', 'mmkd', 'configs', 'tools', 'benchmarks/studies')
    return git('rev-parse', '--short=12', 'HEAD') + ('+changes' if changed else '')


def _versions() -> dict[str, str]:
    import mmcv
    import mmdet
    import mmengine
    import torch

    import mmkd

    packages = (torch, mmcv, mmengine, mmdet, mmkd)
    return {'python': platform.python_version()} | {p.__name__: p.__version__ for p in packages}


def _device() -> str:
    import torch

    from mmkd.evaluation.complexity import processor_name

    name = processor_name()
    return name if torch.cuda.is_available() else f'{name}, {_cores()} cores'


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every platform
        return os.cpu_count() or 1


# ------------------------------------------------------------------------------------ comparing


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
    from mmkd.reporting.tables import interval, with_error

    found = present(study, results)
    costs = {}
    for run in study.runs(None, [study.settings.seeds[0]]) if steps and steps.lines else ():
        costs[run.recipe] = steps.of(run.digest)
    teacher = results.of(study.teacher())
    rows = [
        '| recipe | seeds | mAP | AP50 | F1 | mAP over baseline | p | gap closed |',
        '|---|---:|---:|---:|---:|---:|---:|---:|',
    ]
    if teacher:
        cells = ' | '.join(f'{100 * teacher[name]:.1f}' for name in METRICS)
        rows.append(f'| {TEACHER} | 1 | {cells} | | | |')
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
        rows.append('| ' + ' | '.join(cells) + ' |')
    if costs:
        rows[0] += ' step |'
        rows[1] += '---:|'
        if teacher:
            rows[2] += ' |'
    note = (
        "± is half of the 95 % confidence interval of the mean (Student's t). Differences and p are paired "
        'by seed (two-sided t-test). Gap closed: the share of the way from baseline to teacher.'
    )
    if costs:
        note += (
            ' Step: how many times as long as the step of the student alone, forward and backward.'
        )
    return '\n'.join([*rows, '', note])


def _difference(
    lines: dict[int, dict[str, Any]], base: dict[int, float], teacher: dict[str, Any] | None
) -> list[str]:
    from scipy import stats

    from mmkd.reporting.tables import interval, with_error

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

    from mmkd.reporting.tables import interval

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


if __name__ == '__main__':
    run_tool(benchmark, parse_args())
