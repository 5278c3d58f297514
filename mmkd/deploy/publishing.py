"""Write a student as others use it: weights and config alone, with a model card."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from safetensors.torch import save_file
from torch import Tensor

from ..building import build_detector
from ..checkpoints import load_weights, read_checkpoint, sha256_of
from ..hooks.student_config import RUN_KEYS, has_student, student_config
from .model_card import Facts, card
from .new_folder import check_new, new_folder

# What of a training checkpoint's meta is about the weights.
META = ('dataset_meta', 'epoch', 'iter', 'seed', 'mmengine_version', 'time')
DIGITS = 8  # of the hash in a name, as mmdet's publishing tool has them


@dataclass(frozen=True)
class Published:
    """The files of a published student.

    Attributes:
        folder: Where they are.
        config: The plain student's config.
        weights: Its weights, as mmengine reads them.
        safetensors: The same, without code that reading could run.
        card: The model card.
    """

    folder: Path
    config: Path
    weights: Path
    safetensors: Path
    card: Path


def publish(
    config: Config, checkpoint: str, out: str | os.PathLike[str], name: str, license_: str = ''
) -> Published:
    """Write the plain student of a checkpoint to a folder.

    ``DetInferencer`` runs it from there without mmkd, unless the student has modules of mmkd.

    Args:
        config: The config that it was trained with, of a distillation or a plain detector.
        checkpoint: Its checkpoint, a file or a URL.
        out: The folder; it must be new or empty.
        name: How the files are called.
        license_: The licence of the weights, as an SPDX identifier.

    Raises:
        ConfigError: The folder is not empty.
        MissingFileError, CheckpointError: The checkpoint is not there, or does not belong to the config.
    """
    out = check_new(out)
    where = f'checkpoint {checkpoint}'
    content = read_checkpoint(str(checkpoint), where, 'name the file of a trained student')
    plain = plain_config(config)
    detector = build_detector(plain.model, 'model', plain.get('default_scope') or 'mmdet')
    load_weights(detector, content, where)
    state = {key: value.detach().cpu().clone() for key, value in content['state_dict'].items()}
    meta = {key: content['meta'][key] for key in META if key in (content.get('meta') or {})}
    with new_folder(out) as folder:
        files = _write(folder, name, plain, state, meta)
        facts = Facts.of(config, str(checkpoint), name, license_, meta, state)
        (folder / 'README.md').write_text(card(facts, files), encoding='utf-8')
    config_file, weights, safetensors = (out / Path(file).name for file in files)
    return Published(out, config_file, weights, safetensors, out / 'README.md')


def _write(
    folder: Path, name: str, plain: Config, state: dict[str, Tensor], meta: dict[str, Any]
) -> dict[str, str]:
    """Config and weights; returns the SHA-256 of each file by its name, in this order."""
    config = folder / f'{name}.py'
    plain.dump(str(config))
    unnamed = folder / f'{name}.pth'
    # Where mmengine's inferencers look for the config.
    text = plain.pretty_text
    torch.save(dict(state_dict=state, meta=meta | dict(cfg=text), message_hub={}), unnamed)
    digest = sha256_of(unnamed)
    weights = unnamed.rename(folder / f'{name}-{digest[:DIGITS]}.pth')
    safetensors = weights.with_suffix('.safetensors')
    classes = (meta.get('dataset_meta') or {}).get('classes') or ()
    save_file(
        {key: value.contiguous() for key, value in state.items()},
        safetensors,
        metadata=dict(config=config.name, classes=json.dumps(list(classes))),
    )
    return {file.name: sha256_of(file) for file in (config, weights, safetensors)}


def plain_config(config: Config) -> Config:
    """The student's config, or a plain detector's without what belongs to one run.

    Args:
        config: Of a distillation or of a plain detector; it is not changed.
    """
    if has_student(config):
        return student_config(config)
    content = copy.deepcopy(config.to_dict())
    for key in RUN_KEYS:
        content.pop(key, None)
    return Config(content)
