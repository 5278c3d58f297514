"""The finished runs, and on what they ran."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from study import Run

HERE = Path(__file__).resolve().parent


class Results:
    """The finished runs, a line each in a file that all studies share.

    What another study has run with the same config, teacher and seed is not run again. Lines with a key
    ``withdrawn``, the reason, stay in the file and count as not there.

    Args:
        path: The file; it need not exist.
        study: The study's name.
    """

    def __init__(self, path: Path, study: str) -> None:
        self.path, self.study = path, study
        self._lock = threading.Lock()
        text = path.read_text(encoding='utf-8') if path.is_file() else ''
        every = [json.loads(line) for line in text.splitlines()]
        self._every = [line for line in every if 'withdrawn' not in line]

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
            git_commit=commit(),
            versions=versions(),
            device=device_name(),
            seconds=seconds,
        )
        with self._lock:
            with open(self.path, 'a', encoding='utf-8') as file:
                file.write(json.dumps(line) + '\n')
            self._every.append(line)
        return line


def commit() -> str:
    """The commit the code is at, marked if the code differs from it."""

    def git(*words: str) -> str:
        done = subprocess.run(['git', *words], cwd=HERE.parent, capture_output=True, text=True)
        return done.stdout.strip()

    changed = git('status', '--porcelain', '--', 'mmkd', 'configs', 'tools', 'benchmarks/*.py')
    return git('rev-parse', '--short=12', 'HEAD') + ('+changes' if changed else '')


def versions() -> dict[str, str]:
    import mmcv
    import mmdet
    import mmengine
    import torch

    import mmkd

    packages = (torch, mmcv, mmengine, mmdet, mmkd)
    return {'python': platform.python_version()} | {p.__name__: p.__version__ for p in packages}


def device_name() -> str:
    import torch

    from mmkd.analysis.complexity import processor_name

    name = processor_name()
    return name if torch.cuda.is_available() else f'{name}, {cores()} cores'


def cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every platform
        return os.cpu_count() or 1
