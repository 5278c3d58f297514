"""A model card: the origin of a student's weights, and their scores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mmdet
import torch
from mmengine.config import Config
from torch import Tensor

from ..analysis.work_dir import METRICS, read_work_dir
from ..checkpoints import NAMED_HASH, sha256_of
from ..datasets.data_root import iter_leaves
from ..errors import UserError
from ..hooks.student_config import has_student
from ..version import __version__

UNKNOWN = 'not known'


@dataclass
class Facts:
    """The content of a model card.

    Attributes:
        name: Name of the model.
        license: SPDX identifier, or empty.
        classes: Class names.
        parameters: Number of parameters.
        detector: Class of the detector.
        data: Annotation files by mode (``train``, ``val``, ``test``).
        teachers: By name: config, checkpoint and the hash of the checkpoint.
        losses: By name: type, weight and alignment of each distillation loss.
        scores: By the names of :data:`mmkd.analysis.work_dir.METRICS`, in 0..1.
        training: Seed, length and versions, by name.
    """

    name: str
    license: str
    classes: tuple[str, ...]
    parameters: int
    detector: str
    data: dict[str, list[str]]
    teachers: dict[str, tuple[str, str, str]]
    losses: dict[str, tuple[str, str, str]]
    scores: dict[str, float] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        config: Config,
        checkpoint: str,
        name: str,
        license_: str,
        meta: dict[str, Any],
        state: dict[str, Tensor],
    ) -> Facts:
        """Collect the content from config, checkpoint and the logs in the folder of the checkpoint.

        Args:
            config: The config of the training run.
            checkpoint: Path of the checkpoint.
            name: Name of the model.
            license_: SPDX identifier.
            meta: Metadata of the checkpoint.
            state: Weights of the checkpoint.
        """
        distils = has_student(config)
        student = config.model.student if distils else config.model
        dataset_meta = meta.get('dataset_meta') or {}
        found = cls(
            name=name,
            license=license_,
            classes=tuple(dataset_meta.get('classes') or ()),
            parameters=sum(value.numel() for key, value in state.items() if 'running_' not in key),
            detector=str(student.type),
            data={mode: [*_annotations(config, mode)] for mode in ('train', 'val', 'test')},
            teachers=dict(_teachers(config.model)) if distils else {},
            losses=dict(_losses(config.model)) if distils else {},
        )
        found.training = {
            'seed': meta.get('seed', (config.get('randomness') or {}).get('seed', UNKNOWN)),
            'epochs': meta.get('epoch', UNKNOWN),
            'iterations': meta.get('iter', UNKNOWN),
            'mmkd': __version__,
            'mmdet': mmdet.__version__,
            'torch': torch.__version__,
        }
        try:
            work_dir = read_work_dir(Path(checkpoint).parent)
        except UserError:
            return found  # not a work directory
        if work_dir.checkpoint and os.path.samefile(work_dir.checkpoint, checkpoint):
            found.scores = work_dir.scores
        return found


def _annotations(config: Config, mode: str) -> Iterator[str]:
    section = f'{mode}_dataloader'
    for owner, key, value, _ in iter_leaves(config.get(section) or {}, section):
        if key == 'ann_file' and isinstance(value, str) and value:
            yield f'{owner.get("type")}, {value}'


def _teachers(model: dict[str, Any]) -> Iterator[tuple[str, tuple[str, str, str]]]:
    named = {'teacher': model.get('teacher'), **(model.get('teachers') or {})}
    for name, teacher in named.items():
        if not teacher:
            continue
        weights = str(teacher.get('checkpoint') or teacher.get('cache') or 'average of the student')
        hashed = NAMED_HASH.search(weights)
        digest = hashed[1] if hashed else UNKNOWN
        if os.path.isfile(weights):
            digest = sha256_of(weights)
        config = teacher.get('config')
        shown = config if isinstance(config, str) else UNKNOWN
        yield name, (os.path.basename(shown), os.path.basename(weights), digest)


def _losses(model: dict[str, Any]) -> Iterator[tuple[str, tuple[str, str, str]]]:
    for name, entry in (model.get('losses') or {}).items():
        if entry:
            align = entry.get('align') or 'FeatureAlignment'
            kind = align if isinstance(align, str) else align.get('type')
            weight = entry.get('loss_weight', 1.0)
            shown = f'{weight:g}' if isinstance(weight, (int, float)) else 'measured'
            yield name, (str(entry.get('type')), shown, str(kind))


def card(facts: Facts, files: dict[str, str]) -> str:
    """The card as Markdown, with front matter for model hubs.

    Args:
        facts: The content.
        files: SHA-256 by file name, in this order: config, weights, safetensors.
    """
    config, weights, _ = files
    lines = [
        '---',
        f'license: {facts.license or "unknown"}',
        'library_name: mmdet',
        'pipeline_tag: object-detection',
        'tags: [object-detection, mmdetection, knowledge-distillation]',
        '---',
        '',
        f'# {facts.name}',
        '',
        f'{facts.detector} with {facts.parameters / 1e6:.2f} million parameters'
        + (', trained by knowledge distillation.' if facts.teachers else '.'),
        '',
        '```python',
        'from mmdet.apis import DetInferencer',
        '',
        f"inferencer = DetInferencer('{config}', '{weights}')",
        "inferencer('image.jpg', out_dir='predictions')",
        '```',
        '',
        '## Classes',
        '',
        ', '.join(facts.classes) or UNKNOWN,
        '',
        '## Data',
        '',
        *(f'- {mode}: {"; ".join(paths) or UNKNOWN}' for mode, paths in facts.data.items()),
        '',
        '## Scores',
        '',
    ]
    if facts.scores:
        lines += ['| metric | value |', '|---|---:|']
        lines += [
            f'| {name} | {100 * facts.scores[name]:.1f} |'
            for name in METRICS
            if name in facts.scores
        ]
        lines += ['', 'On the validation images, a single training run.']
    else:
        lines.append(
            'Not known: the folder of the checkpoint has no validation log of these weights.'
        )
    if facts.teachers:
        lines += [
            '',
            '## Distillation',
            '',
            '| teacher | config | checkpoint | SHA-256 |',
            '|---|---|---|---|',
        ]
        lines += [f'| {name} | {" | ".join(of)} |' for name, of in facts.teachers.items()]
        lines += ['', '| loss | type | weight | alignment |', '|---|---|---:|---|']
        lines += [
            f'| {name} | {kind} | {weight} | {align} |'
            for name, (kind, weight, align) in facts.losses.items()
        ]
    lines += ['', '## Training', '', '| | |', '|---|---|']
    lines += [f'| {key} | {value} |' for key, value in facts.training.items()]
    lines += ['', '## Files', '', '| file | SHA-256 |', '|---|---|']
    lines += [f'| {name} | {digest} |' for name, digest in files.items()]
    return '\n'.join(lines) + '\n'
