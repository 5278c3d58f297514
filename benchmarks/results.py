"""The finished runs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conditions import commit, conditions_of, file_checksums, records_arithmetic

if TYPE_CHECKING:
    from study import Run


class Results:
    """The finished runs: one JSON line per run, in a file that all studies share.

    A run with the same config, teacher, seed and arithmetic as a run of another study is not repeated. Lines
    with the key ``withdrawn`` (its value is the reason) stay in the file but are ignored.

    Args:
        path: The file; it need not exist.
        study: The study's name.
    """

    def __init__(self, path: Path, study: str) -> None:
        self.path, self.study = path, study
        self._lock = threading.Lock()
        text = path.read_text(encoding='utf-8') if path.is_file() else ''
        every = [json.loads(line) for line in text.splitlines()]
        self._all_studies = [line for line in every if 'withdrawn' not in line]

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The lines of this study."""
        return [line for line in self._all_studies if line['study'] == self.study]

    def line_of(self, run: Run, conditions: str) -> dict[str, Any] | None:
        """The newest line of a run under some conditions (see :func:`conditions_of`), or None.

        Lines of this study come before lines of other studies.
        """
        found = [line for line in self.lines_of(run) if conditions_of(line) == conditions]
        own = [line for line in found if line['study'] == self.study]
        return (own or found or [None])[-1]

    def most_common_conditions(self, runs: Iterable[Run]) -> str:
        """The conditions under which most of the runs were trained; recorded arithmetic comes first."""
        count: dict[tuple[bool, str], int] = {}
        for run in runs:
            for key in {
                (records_arithmetic(line), conditions_of(line)) for line in self.lines_of(run)
            }:
                count[key] = count.get(key, 0) + 1
        return max(count, key=lambda key: (key[0], count[key]), default=(False, ''))[1]

    def lines_of(self, run: Run) -> list[dict[str, Any]]:
        """The lines of a run under all conditions, of all studies."""
        key = run.digest, run.seed
        return [each for each in self._all_studies if (each['config_hash'], each['seed']) == key]

    def add(
        self, run: Run, metrics: dict[str, float], seconds: float, origin: dict[str, Any]
    ) -> dict[str, Any]:
        """Append a finished run to the file.

        Args:
            run: The run; the files it has read must be unchanged.
            metrics: Scores from 0 to 1.
            seconds: Duration.
            origin: The result of :func:`conditions.observe_process`.
        """
        line = dict(
            study=self.study,
            recipe=run.recipe,
            seed=run.seed,
            **metrics,
            config_hash=run.digest,
            git_commit=commit(),
            **origin,
            files=file_checksums(run),
            resumed=False,
            seconds=seconds,
        )
        with self._lock:
            with open(self.path, 'a', encoding='utf-8') as file:
                file.write(json.dumps(line) + '\n')
            self._all_studies.append(line)
        return line
