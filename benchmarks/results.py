"""The finished runs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conditions import alike, commit, files_of, is_recorded

if TYPE_CHECKING:
    from study import Run


class Results:
    """The finished runs, a line each in a file that all studies share.

    What another study has run with the same config, teacher, seed and arithmetic is not run again. Lines with
    a key ``withdrawn``, the reason, stay in the file and count as not there.

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

    def of(self, run: Run, like: str) -> dict[str, Any] | None:
        """The line of a run with some arithmetic (see :func:`alike`), or None while there is none."""
        found = [line for line in self.every(run) if alike(line) == like]
        own = [line for line in found if line['study'] == self.study]
        return (own or found or [None])[-1]

    def most(self, runs: Iterable[Run]) -> str:
        """With which arithmetic most of some runs were trained, those first of which it is recorded."""
        count: dict[tuple[bool, str], int] = {}
        for run in runs:
            for kind in {(is_recorded(line), alike(line)) for line in self.every(run)}:
                count[kind] = count.get(kind, 0) + 1
        return max(count, key=lambda kind: (kind[0], count[kind]), default=(False, ''))[1]

    def every(self, run: Run) -> list[dict[str, Any]]:
        """The lines of a run, with whatever arithmetic."""
        key = run.digest, run.seed
        return [each for each in self._every if (each['config_hash'], each['seed']) == key]

    def add(
        self, run: Run, metrics: dict[str, float], seconds: float, where: dict[str, Any]
    ) -> dict[str, Any]:
        """Write a finished run down.

        Args:
            run: Whose files are still as it read them.
            metrics: In 0..1.
            seconds: It took.
            where: What :func:`conditions.observed` says.
        """
        line = dict(
            study=self.study,
            recipe=run.recipe,
            seed=run.seed,
            **metrics,
            config_hash=run.digest,
            git_commit=commit(),
            **where,
            files=files_of(run),
            resumed=False,
            seconds=seconds,
        )
        with self._lock:
            with open(self.path, 'a', encoding='utf-8') as file:
                file.write(json.dumps(line) + '\n')
            self._every.append(line)
        return line
