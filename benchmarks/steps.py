"""Measured duration and memory of a training step, per recipe of a study."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmengine.config import Config

    from mmkd.analysis.training_cost import TrainingCost


class Steps:
    """The measured steps of a study: one JSON line per recipe, in a file that all studies share.

    Args:
        path: The file; it need not exist.
        study: The study's name.
    """

    def __init__(self, path: Path, study: str) -> None:
        self.path, self.study, self.lines = path, study, []
        if path.is_file():
            lines = (json.loads(text) for text in path.read_text(encoding='utf-8').splitlines())
            self.lines = [line for line in lines if line['study'] == study]

    def line_of(self, digest: str) -> dict[str, Any] | None:
        """The newest measurement of a config, or None."""
        found = [line for line in self.lines if line['config_hash'] == digest]
        return found[-1] if found else None

    def add(self, recipe: str, digest: str, cost: TrainingCost, **origin: Any) -> dict[str, Any]:
        """Append a measurement to the file.

        Args:
            recipe: The recipe's name.
            digest: The digest of its config.
            cost: The measurement.
            origin: Commit, versions and device.
        """
        line = dict(
            study=self.study,
            recipe=recipe,
            config_hash=digest,
            student_step_s=round(cost.student_step_s, 5),
            teacher_pass_s=round(cost.teacher_pass_s, 5),
            kd_step_s=round(cost.kd_step_s, 5),
            overhead_ratio=round(cost.overhead_ratio, 4),
            overhead_quartiles=[round(value, 4) for value in cost.overhead_quartiles],
            peak_memory_mb={name: round(mb, 1) for name, mb in cost.peak_memory_mb.items()},
            losses_s={name: round(seconds, 5) for name, seconds in cost.losses_s.items()},
            **origin,
        )
        with open(self.path, 'a', encoding='utf-8') as file:
            file.write(json.dumps(line) + '\n')
        self.lines.append(line)
        return line


def measure_step(cfg: Config, iterations: int = 20) -> TrainingCost:
    """Time the training step of a distillation on its own data.

    Args:
        cfg: The config; the teacher's checkpoint must exist.
        iterations: Measured rounds.
    """
    import torch
    from mmdet.registry import MODELS
    from mmengine.device import get_device
    from mmengine.registry import init_default_scope
    from mmengine.runner import Runner

    from mmkd.analysis.training_cost import measure

    cfg = copy.deepcopy(cfg)
    init_default_scope('mmdet')
    torch.manual_seed(0)
    loader = Runner.build_dataloader(
        dict(cfg.train_dataloader, num_workers=0, persistent_workers=False), seed=0
    )
    cfg.model.classes = list(loader.dataset.metainfo['classes'])
    distiller = MODELS.build(cfg.model)
    distiller.init_weights()
    batches = list(itertools.islice(loader, 8))
    return measure(distiller.to(get_device()), batches, iterations, warmup=5)
