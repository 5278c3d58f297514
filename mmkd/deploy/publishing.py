"""Write a student for others to use: weights, config and model card."""

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

# Metadata of a training checkpoint that is kept, as it describes the weights.
META = ('dataset_meta', 'epoch', 'iter', 'seed', 'mmengine_version', 'time')
DIGITS = 8  # of the hash in a file name, as in mmdet's publishing tool


@dataclass(frozen=True)
class Published:
    """The files of a published student.

    Attributes:
        folder: The folder with all files.
        config: Config of the plain student.
        weights: Weights as a checkpoint of mmengine.
        safetensors: The same weights as safetensors, a format that cannot contain code.
        card: The model card.

    Examples:
        >>> from pathlib import Path
        >>> from mmkd.deploy import Published
        >>> names = ('tiny.py', 'tiny-0123abcd.pth', 'tiny-0123abcd.safetensors', 'README.md')
        >>> published = Published(Path('public'), *(Path('public', name) for name in names))
        >>> str(published.weights), published.card.name
        ('public/tiny-0123abcd.pth', 'README.md')
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
        config: The config of the training run, with or without distillation.
        checkpoint: The checkpoint of the student, a file or a URL.
        out: The folder; it must be new or empty.
        name: Name of the files, without extension.
        license_: The licence of the weights, as an SPDX identifier.

    Raises:
        ConfigError: The folder is not empty.
        MissingFileError, CheckpointError: The checkpoint does not exist or does not match the config.
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
    """Write config, weights and safetensors; returns their SHA-256 by file name, in this order."""
    config = folder / f'{name}.py'
    plain.dump(str(config))
    unnamed = folder / f'{name}.pth'
    # mmengine's inferencers read the config from this entry.
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
    """The config of the plain student, without the keys of one run.

    Args:
        config: A config with or without distillation; it is not changed.
    """
    if has_student(config):
        return student_config(config)
    content = copy.deepcopy(config.to_dict())
    for key in RUN_KEYS:
        content.pop(key, None)
    return Config(content)
