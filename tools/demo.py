"""Demonstrate distillation: generate data, train teacher and students, compare (15 minutes on 2 cores)."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _cli import run_tool

if TYPE_CHECKING:
    from mmengine.config import Config

CONFIGS = Path(__file__).resolve().parent.parent / 'configs' / 'demo'
TEACHER, STUDENT, DISTILLED = 'teacher', 'student', 'distilled'
CONFIG_OF = {
    TEACHER: 'faster-rcnn_r18_fpn.py',
    STUDENT: 'faster-rcnn_r18-narrow_fpn.py',
    DISTILLED: 'faster-rcnn_r18_to_r18-narrow.py',
}
TITLE_OF = {TEACHER: 'teacher', STUDENT: 'student', DISTILLED: 'distilled student'}

STATE_FILE = 'stage.json'
METRICS_FILE = 'metrics.json'

Report = Callable[[float], None]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='demo.py',
        description=__doc__,
        epilog='Run the command again to continue after an interrupt; finished stages are not repeated.',
        allow_abbrev=False,
    )
    parser.add_argument(
        '--work-dir', help='folder for all files (default: work_dirs/demo, or demo-quick)'
    )
    parser.add_argument(
        '--fresh', action='store_true', help='delete earlier results and start over'
    )
    parser.add_argument(
        '--seed', type=int, default=0, help='seed of images and training runs (default: 0)'
    )
    parser.add_argument(
        '--quick',
        action='store_true',
        help='use few images and steps, to test that everything works; the numbers are meaningless',
    )
    parser.add_argument(
        '--device', choices=['cpu', 'cuda'], help='device to use (default: cuda if available)'
    )
    parser.add_argument('--debug', action='store_true', help='show tracebacks of errors')
    # The demo starts itself with this option for each training run, and reads the progress from stdout.
    parser.add_argument('--train', choices=list(CONFIG_OF), help=argparse.SUPPRESS)
    parser.set_defaults(gpus=None, local_rank=0)
    return parser.parse_args()


# ------------------------------------------------------------------------------ the whole demo


def demo(args: argparse.Namespace) -> None:
    """Run all stages, and print the results."""
    from mmkd.errors import UserError

    work_dir = Path(args.work_dir or ('work_dirs/demo-quick' if args.quick else 'work_dirs/demo'))
    work_dir.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    progress = _progress(sys.stdout)
    try:
        with open(work_dir / 'console.log', 'a', encoding='utf-8', buffering=1) as log:
            _lock(log, work_dir)
            if args.fresh:
                _forget(work_dir)
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log), progress:
                metrics = _run_stages(args, work_dir, progress)
    except KeyboardInterrupt:
        print(f'\nInterrupted. Continue with: {_command(args)}', flush=True)
        sys.exit(130)
    except Exception as error:
        if not isinstance(error, UserError):
            print(f'mmkd: log of this run: {work_dir / "console.log"}', file=sys.stderr)
        raise
    print(f'\n{format_table(metrics)}\n\n{describe(metrics)}\n')
    for name in ('table.md', 'comparison.png', 'curves.png'):
        print(f'  {work_dir / name}')
    print(f'\nDone in {_minutes(time.monotonic() - start)}.')


def _run_stages(args: argparse.Namespace, work_dir: Path, progress: Progress) -> dict[str, Any]:
    from _synthetic_scenes import prepare_scenes
    from mmkd.analysis.curves import curves_of, draw_curves
    from mmkd.analysis.work_dir import read_work_dir

    settings = _data_settings(args)
    with progress.stage(f'Generate {settings.train + settings.val} images') as report:
        generated = prepare_scenes(
            work_dir / 'data', settings, lambda done, total: report(done / total)
        )
        report.finish('' if generated else 'already done')

    _train_all([TEACHER], args, work_dir, progress)
    # These runs are independent; in parallel with half of the cores each they finish earlier.
    _train_all([STUDENT, DISTILLED], args, work_dir, progress)
    checkpoints = {name: _checkpoint(work_dir, name) for name in CONFIG_OF}

    with progress.stage('Evaluate all three') as report:
        metrics = _evaluate(args, work_dir, checkpoints, report)
    with progress.stage('Write table and figures') as report:
        table = f'{format_table(metrics)}\n\n{describe(metrics)}\n'
        (work_dir / 'table.md').write_text(table, encoding='utf-8')
        runs = [curves_of(read_work_dir(work_dir / n), TITLE_OF[n]) for n in checkpoints]
        draw_curves(runs).savefig(work_dir / 'curves.png')
        report(0.3)
        _draw_comparison(args, work_dir, checkpoints, metrics)
        report.finish()
    return metrics


def _data_settings(args: argparse.Namespace):
    from _synthetic_scenes import SceneSettings

    if args.quick:
        return SceneSettings(train=16, val=8, seed=args.seed)
    return SceneSettings(seed=args.seed)


def _config(name: str, args: argparse.Namespace, work_dir: Path) -> Config:
    """The config of one training run, with the folders and the seed of this demo."""
    from mmengine.config import Config

    from mmkd.datasets.data_root import replace_data_root

    cfg = Config.fromfile(str(CONFIGS / CONFIG_OF[name]))
    replace_data_root(cfg, f'{work_dir / "data"}/')
    cfg.work_dir = str(work_dir / name)
    cfg.randomness = dict(seed=args.seed)
    if name == DISTILLED:
        cfg.model.teacher.checkpoint = str(_checkpoint(work_dir, TEACHER))
    if args.quick:
        cfg.train_cfg.update(max_epochs=2, val_interval=1)
    return cfg


def _plain(name: str) -> str:
    """The config for evaluation: that of the student for the distilled student."""
    return STUDENT if name == DISTILLED else name


def _lock(file: Any, work_dir: Path) -> None:
    """Prevent two demos in the same folder; the lock is released when the process ends."""
    from mmkd.errors import UserError

    try:
        import fcntl
    except ImportError:  # not on every platform
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UserError(
            f'--work-dir: another demo is running in {work_dir}; wait for it, or name another folder'
        ) from None


def _forget(work_dir: Path) -> None:
    """Delete the results of an earlier demo, and nothing else."""
    from _synthetic_scenes import SETTINGS_FILE

    for name in (TEACHER, STUDENT, DISTILLED):
        if (work_dir / name / STATE_FILE).is_file():
            shutil.rmtree(work_dir / name)
            (work_dir / f'{name}.log').unlink(missing_ok=True)
    if (work_dir / 'data' / SETTINGS_FILE).is_file():
        shutil.rmtree(work_dir / 'data')
    for name in (METRICS_FILE, 'table.md', 'comparison.png', 'curves.png'):
        (work_dir / name).unlink(missing_ok=True)


def _command(args: argparse.Namespace) -> str:
    options = [f'--seed {args.seed}'] if args.seed else []
    options += ['--quick'] if args.quick else []
    options += [f'--work-dir {args.work_dir}'] if args.work_dir else []
    options += [f'--device {args.device}'] if args.device else []
    if not options and Path('Makefile').is_file():
        return 'make demo'
    return ' '.join(['python -m mmkd demo', *options])


# ------------------------------------------------------------------------------------ training


def _train_all(
    names: list[str], args: argparse.Namespace, work_dir: Path, progress: Progress
) -> None:
    """Train all unfinished detectors in parallel, each in its own process."""
    with contextlib.ExitStack() as stack:
        reports = {
            name: stack.enter_context(progress.stage(f'Train the {TITLE_OF[name]}'))
            for name in names
        }
        for name in names:
            if _is_trained(_config(name, args, work_dir), work_dir / name):
                reports.pop(name).finish('already trained')
        processes = {name: _start(name, args, work_dir, len(reports)) for name in reports}
        listeners = [
            threading.Thread(target=_listen, args=(process, reports[name]), daemon=True)
            for name, process in processes.items()
        ]
        try:
            for listener in listeners:
                listener.start()
            _wait(processes, work_dir)
        finally:
            for process in processes.values():
                if process.poll() is None:
                    process.terminate()
            for process in processes.values():
                process.wait()
        for listener in listeners:
            listener.join()


def _start(
    name: str, args: argparse.Namespace, work_dir: Path, at_once: int
) -> subprocess.Popen[str]:
    options = ['--train', name, '--work-dir', str(work_dir), '--seed', str(args.seed)]
    options += ['--quick'] if args.quick else []
    options += ['--debug'] if args.debug else []
    options += ['--device', args.device] if args.device else []
    threads = max(1, _cores() // at_once)
    with open(work_dir / f'{name}.log', 'a', encoding='utf-8') as log:
        return subprocess.Popen(
            [sys.executable, __file__, *options],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={'OMP_NUM_THREADS': str(threads), **os.environ},
            # Ctrl-C reaches only this process, which then ends the others.
            start_new_session=True,
        )


def _listen(process: subprocess.Popen[str], report: StageReport) -> None:
    for line in process.stdout:
        report(float(line))
    if process.wait() == 0:
        report.finish()


def _wait(processes: dict[str, subprocess.Popen[str]], work_dir: Path) -> None:
    """Wait until all processes succeed or one fails.

    Raises:
        UserError: A process failed; the message has the last line of its log.
    """
    from mmkd.errors import UserError

    while any(process.poll() is None for process in processes.values()):
        failed = [name for name, process in processes.items() if process.poll()]
        if failed:
            break
        time.sleep(0.1)
    for name, process in processes.items():
        if process.poll():
            log = work_dir / f'{name}.log'
            lines = log.read_text(encoding='utf-8').strip().splitlines() or ['']
            raise UserError(f'training of the {TITLE_OF[name]} failed: {lines[-1]}; see {log}')


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every platform
        return os.cpu_count() or 1


def train_one(args: argparse.Namespace) -> None:
    """Run one training run in this process: progress goes to stdout, all other output to stderr."""
    work_dir, out = Path(args.work_dir), sys.stdout
    reported = 0.0

    def report(fraction: float) -> None:
        nonlocal reported
        if fraction - reported >= 0.005 or fraction >= 1:
            reported = fraction
            # If the demo has ended, this fails and ends the training too.
            print(f'{fraction:.4f}', file=out, flush=True)

    try:
        with contextlib.redirect_stdout(sys.stderr):
            _train(_config(args.train, args, work_dir), work_dir / args.train, report)
    except KeyboardInterrupt:
        sys.exit(130)


def _train(cfg: Config, folder: Path, report: Report) -> None:
    """Start a training run, or resume an interrupted one."""
    from mmengine.runner import Runner

    from mmkd.checkpoints import allow_training_checkpoints

    fingerprint = _fingerprint(cfg)
    state = _read_json(folder / STATE_FILE)
    if state.get('fingerprint') != fingerprint:
        if state:
            shutil.rmtree(folder)
        state = {'fingerprint': fingerprint, 'seconds': 0.0}
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / STATE_FILE, state)
    unfinished = _latest_checkpoint(folder)
    if unfinished is not None:
        cfg.resume, cfg.load_from = True, str(unfinished)
        allow_training_checkpoints()  # without it, mmengine 0.10.7 cannot read its own
    start = time.monotonic()
    try:
        runner = Runner.from_cfg(cfg)
        runner.register_hook(_progress_hook(report), priority='VERY_LOW')
        runner.train()
    finally:
        state['seconds'] = round(state['seconds'] + time.monotonic() - start, 1)
        _write_json(folder / STATE_FILE, state)
    last = folder / f'epoch_{cfg.train_cfg.max_epochs}.pth'
    done = {'checkpoint': last.name, 'sha256': _sha256(last)}
    _write_json(folder / STATE_FILE, {**state, **done})


def _checkpoint(work_dir: Path, name: str) -> Path:
    """The checkpoint of a finished training run."""
    return work_dir / name / _read_json(work_dir / name / STATE_FILE)['checkpoint']


def _fingerprint(cfg: Config) -> str:
    """A hash of all settings that affect the trained weights, without the paths of folders."""
    from mmkd import __version__

    content = cfg.to_dict()
    root = content.pop('data_root')
    content.pop('work_dir', None)
    settings = (Path(root) / 'settings.json').read_text(encoding='utf-8')
    teacher = content['model'].get('teacher')
    if teacher:
        teacher['checkpoint'] = _sha256(Path(teacher['checkpoint']))
        teacher['config'] = Path(teacher['config']).name
    text = json.dumps([__version__, settings, content], sort_keys=True, default=str)
    return hashlib.sha256(text.replace(root, '').encode()).hexdigest()


def _is_trained(cfg: Config, folder: Path) -> bool:
    """Whether the last checkpoint of exactly this training run exists and is intact."""
    state = _read_json(folder / STATE_FILE)
    checkpoint = folder / state.get('checkpoint', 'none')
    return (
        checkpoint.is_file()
        and state['fingerprint'] == _fingerprint(cfg)
        and state['sha256'] == _sha256(checkpoint)
    )


def _latest_checkpoint(folder: Path) -> Path | None:
    """The last complete checkpoint; an incomplete one is not a valid zip file."""
    found = sorted(folder.glob('epoch_*.pth'), key=lambda path: int(path.stem.split('_')[1]))
    return next((path for path in reversed(found) if zipfile.is_zipfile(path)), None)


def _progress_hook(report: Report):
    from mmengine.hooks import Hook

    class ProgressHook(Hook):
        """Reports the finished fraction of the training."""

        def before_train(self, runner: Any) -> None:
            report(runner.iter / runner.max_iters)

        def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
            report((runner.iter + 1) / runner.max_iters)

    return ProgressHook()


# ---------------------------------------------------------------------------------- evaluation


def _evaluate(
    args: argparse.Namespace, work_dir: Path, checkpoints: dict[str, Path], report: StageReport
) -> dict[str, Any]:
    """Accuracy and cost of each checkpoint, the content of ``metrics.json``."""
    from mmkd.analysis.complexity import (
        build_test_data,
        device_name,
        load_detector,
        measure,
    )
    from mmkd.analysis.statistics import gap_closed
    from mmkd.analysis.work_dir import METRICS
    from mmkd.f1_metric import evaluate

    hashes = {name: _sha256(path) for name, path in checkpoints.items()}
    known = _read_json(work_dir / METRICS_FILE)
    if known.get('checkpoints') == hashes:
        report.finish('already evaluated')
        return known

    metrics: dict[str, Any] = {
        'checkpoints': hashes,
        'machine': device_name(),
        'seed': args.seed,
        'models': {},
    }
    for i, (name, checkpoint) in enumerate(checkpoints.items()):
        cfg = _config(_plain(name), args, work_dir)
        model = load_detector(cfg, str(checkpoint))
        dataset = build_test_data(cfg)
        cost = measure(model, dataset)
        part = _part(report, i, len(checkpoints))
        scores = evaluate(model, dataset, cfg.test_evaluator, part)
        metrics['images'] = len(dataset)
        metrics['input_size'] = cost.input_size
        onnx = _onnx_ms(cfg, model, work_dir / name) if name != STUDENT else None
        metrics['models'][name] = {
            'onnx_ms_per_image': onnx,
            'parameters': cost.parameters,
            'flops': cost.flops,
            'ms_per_image': round(cost.ms_per_image, 2),
            'training_seconds': _read_json(work_dir / name / STATE_FILE).get('seconds'),
            **{key: round(value, 4) for key, value in scores.items()},
        }
    # Both have the same layers, so the time is measured only once.
    known = metrics['models']
    known[STUDENT]['onnx_ms_per_image'] = known[DISTILLED]['onnx_ms_per_image']
    values = [metrics['models'][name][METRICS['mAP']] for name in (TEACHER, STUDENT, DISTILLED)]
    gap = gap_closed(*values)
    metrics['gap_closed'] = None if gap is None else round(gap, 3)
    _write_json(work_dir / METRICS_FILE, metrics)
    report.finish()
    return metrics


def _onnx_ms(cfg: Config, model: Any, folder: Path) -> float | None:
    """Write ``model.onnx`` to the folder; returns the median time per image, None without the packages."""
    from mmengine.dataset import pseudo_collate

    from mmkd.analysis.complexity import build_test_data, time_in_turns
    from mmkd.deploy.check_images import input_type
    from mmkd.deploy.detection_graph import DetectionGraph
    from mmkd.deploy.onnx_detector import OnnxDetector
    from mmkd.deploy.onnx_file import require_packages, write_onnx
    from mmkd.errors import ConfigError

    try:
        require_packages()
    except ConfigError:
        return None
    path = folder / 'model.onnx'
    write_onnx(DetectionGraph(model.cpu(), input_type(cfg)), path)
    batch = pseudo_collate([build_test_data(cfg)[0]])
    (seconds,) = time_in_turns([OnnxDetector(path)], [batch])
    return round(1000 * seconds, 2)


def _draw_comparison(
    args: argparse.Namespace, work_dir: Path, checkpoints: dict[str, Path], metrics: dict[str, Any]
) -> None:
    from mmkd.analysis.comparison import LOWEST_THR, Compared, compare
    from mmkd.analysis.complexity import build_test_data, load_detector
    from mmkd.analysis.run_detectors import detect_with_model
    from mmkd.visualization import spread_indices

    detectors = []
    for name, checkpoint in checkpoints.items():
        cfg = _config(_plain(name), args, work_dir)
        model, dataset = load_detector(cfg, str(checkpoint)), build_test_data(cfg)
        # Each detector has the threshold of its highest F1, as scores of two detectors are not comparable.
        best = metrics['models'][name].get('coco/bbox_F1_shared_threshold', 0.5)
        score_thr = max(best, LOWEST_THR)
        detectors.append(Compared(TITLE_OF[name], detect_with_model(model), dataset, score_thr))
    compare(detectors, spread_indices(dataset)).draw().savefig(work_dir / 'comparison.png')


def format_table(metrics: dict[str, Any]) -> str:
    """The results as a Markdown table with padded columns.

    Args:
        metrics: The content of ``metrics.json``.
    """
    from mmkd.analysis.tables import DASH, markdown_table
    from mmkd.analysis.work_dir import METRICS

    rows = [['', 'parameters', 'GFLOPs', *METRICS, 'ms', 'ms in ONNX Runtime', 'gap closed']]
    for name, values in metrics['models'].items():
        gap = metrics['gap_closed'] if name == DISTILLED else None
        onnx = values.get('onnx_ms_per_image')
        rows.append(
            [
                TITLE_OF[name],
                f'{values["parameters"] / 1e6:.2f} M',
                f'{values["flops"] / 1e9:.3f}',
                *(f'{100 * values[key]:.1f}' for key in METRICS.values()),
                f'{values["ms_per_image"]:.1f}',
                DASH if onnx is None else f'{onnx:.1f}',
                '' if gap is None else f'{100 * gap:.0f} %',
            ]
        )
    return markdown_table(rows)


def describe(metrics: dict[str, Any]) -> str:
    """A short summary of the table and of the measurements.

    Args:
        metrics: The content of ``metrics.json``.
    """
    from mmkd.analysis.work_dir import METRICS

    teacher, student, distilled = (
        100 * metrics['models'][name][METRICS['mAP']] for name in (TEACHER, STUDENT, DISTILLED)
    )
    gap = metrics['gap_closed']
    result = f'Distillation changed the student by {distilled - student:+.1f} points of mAP'
    if gap is None:
        result += '; the teacher is not better than the student, so there is no gap to close.'
    else:
        result += f': {100 * gap:.0f} % of the {teacher - student:.1f} points between student and teacher.'
    height, width = metrics['input_size']
    return '\n'.join(
        [
            *textwrap.wrap(result, 92),
            '',
            f'Accuracy in percent on {metrics["images"]} images that were not used for training: mAP over '
            'IoU 0.5',
            'to 0.95, AP50 and F1 at IoU 0.5, F1 at the best score threshold of each class. Single runs, '
            f'seed {metrics["seed"]}:',
            'with another seed or number of threads each number changes by several points. GFLOPs: '
            'billions of',
            f'multiply-adds for a {width}x{height} image. ms: median time of one image on',
            f'{metrics["machine"]}.',
        ]
    )


# ------------------------------------------------------------------------------------- display


class StageReport:
    """Called with the finished fraction of a stage, in 0..1."""

    def __init__(self, show: Callable[[float, str | None], None]) -> None:
        self._show = show

    def __call__(self, fraction: float) -> None:
        self._show(fraction, None)

    def finish(self, note: str = '') -> None:
        """Mark the stage as finished, with a note to show instead of ``done``."""
        self._show(1.0, note)


class Progress:
    """Prints plain lines about the progress of stages, for logs and pipes."""

    every = 0.25  # of a stage

    def __init__(self, out: Any) -> None:
        self.out = out

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    @contextlib.contextmanager
    def stage(self, title: str) -> Iterator[StageReport]:
        """Show a stage within a ``with`` block."""
        start, reported = time.monotonic(), 0.0
        print(f'{title} ...', file=self.out, flush=True)

        def show(fraction: float, note: str | None) -> None:
            nonlocal reported
            seconds = time.monotonic() - start
            if note is not None:
                print(f'{title}: {note or "done"} ({seconds:.0f} s)', file=self.out, flush=True)
            elif fraction - reported >= self.every and fraction < 1:
                reported = fraction
                print(
                    f'{title}: {100 * fraction:.0f} %, {_minutes(seconds / fraction - seconds)} left',
                    file=self.out,
                    flush=True,
                )

        yield StageReport(show)


class LiveProgress(Progress):
    """Shows progress bars on a terminal, with elapsed and remaining time of each stage."""

    def __init__(self, out: Any) -> None:
        super().__init__(out)
        from rich import progress
        from rich.console import Console

        self.bars = progress.Progress(
            progress.TextColumn('{task.description}'),
            progress.BarColumn(bar_width=28),
            progress.TaskProgressColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn('{task.fields[eta]}'),
            console=Console(file=out),
            # The demo redirects all other output to a log file.
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> LiveProgress:
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    @contextlib.contextmanager
    def stage(self, title: str) -> Iterator[StageReport]:
        """Show a stage within a ``with`` block."""
        start, began = time.monotonic(), None
        task = self.bars.add_task(title.ljust(28), total=1.0, eta='')

        def show(fraction: float, note: str | None) -> None:
            nonlocal start, began
            if began is None or fraction < began:
                start, began = time.monotonic(), fraction  # a resumed stage does not start at 0
            eta = note
            if note is None and fraction - began > 0.01:
                rest = (time.monotonic() - start) * (1 - fraction) / (fraction - began)
                eta = f'{_minutes(rest)} left'
            self.bars.update(task, completed=fraction, eta=eta or '')

        try:
            yield StageReport(show)
        finally:
            self.bars.stop_task(task)


def _progress(out: Any) -> Progress:
    return LiveProgress(out) if out.isatty() else Progress(out)


def _part(report: Report, index: int, count: int) -> Report:
    return lambda fraction: report((index + fraction) / count)


def _minutes(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f'{minutes} min {seconds:02d} s' if minutes else f'{seconds} s'


# --------------------------------------------------------------------------------------- files


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    unfinished = path.with_name(f'{path.name}.part')
    unfinished.write_text(json.dumps(content, indent=1), encoding='utf-8')
    unfinished.replace(path)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _import_quietly(args: argparse.Namespace) -> None:
    """Import mmkd without the warnings of its dependencies; `run_tool` reports a failure later."""
    if args.device == 'cpu':
        os.environ['CUDA_VISIBLE_DEVICES'] = '-1'  # mmengine selects its device during the import
    with open(os.devnull, 'w') as nowhere, contextlib.suppress(Exception):
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            import mmkd  # noqa: F401


if __name__ == '__main__':
    # Set before torch is loaded. With other load on the machine, threads that spin while waiting make
    # training many times slower.
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    arguments = parse_args()
    if not arguments.train:
        print('mmkd demo: a teacher, a student, and a distilled student', flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the same as Ctrl-C
    try:
        _import_quietly(arguments)
    except KeyboardInterrupt:
        sys.exit(130)
    run_tool(train_one if arguments.train else demo, arguments)
