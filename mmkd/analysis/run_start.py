"""Build a distillation with the weights of a starting training run, and batches of its data."""

from __future__ import annotations

import itertools
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner

from ..checkpoints import load_weights, read_checkpoint
from ..distillers import Distiller
from ..errors import ConfigError
from ..hooks import STATE


def with_all_active(config: Config, name: str) -> Config:
    """Activate all losses of a config, and use teachers with a checkpoint instead of their caches.

    Caches may not exist yet, and contain only the images that they were written for.

    Args:
        config: Config of a distillation; changed in place.
        name: Name of the config, for the message.

    Raises:
        ConfigError: ``model.type`` is not ``Distiller``.
    """
    model = config.get('model') or {}
    if model.get('type') != 'Distiller':
        raise ConfigError(
            f'{name}: model.type must be Distiller, got {model.get("type")}; name the config of a '
            f'distillation'
        )
    for entry in filter(None, (model.get('losses') or {}).values()):
        entry.pop('schedule', None)
    for teacher in (model.get('teacher'), *(model.get('teachers') or {}).values()):
        if teacher and 'checkpoint' in teacher and 'cache' in teacher:
            teacher.cache = None
    return config


def build_distillation(
    config: Config,
    batches: int,
    batch_size: int | None = None,
    seed: int = 0,
    checkpoint: str | None = None,
) -> tuple[Distiller, bool, list[dict[str, Any]]]:
    """Build the distiller of a config with the weights that a training run starts with.

    Args:
        config: Config of a distillation, from :func:`with_all_active`.
        batches: Number of batches of the training data.
        batch_size: Images per batch; by default that of the config.
        seed: Seed of the batches.
        checkpoint: Weights of the student instead of those of ``load_from``. Connectors are loaded too if
            it was distilled with the same losses.

    Returns:
        The distiller on its device, whether a checkpoint had all weights of its student, and the batches of
        the training loader.

    Raises:
        CheckpointError: The checkpoint does not match the student.
    """
    model = config.model
    loader = dict(config.train_dataloader, num_workers=0, persistent_workers=False)
    loader['batch_size'] = batch_size or loader['batch_size']
    with redirect_stdout(StringIO()):  # pycocotools prints its progress
        loader = Runner.build_dataloader(loader, seed=seed)
    model.classes = model.get('classes') or loader.dataset.metainfo.get('classes')
    distiller = MODELS.build(model)
    distiller.init_weights()
    is_trained = bool(checkpoint)
    if checkpoint:
        load_student(distiller, checkpoint)
    elif config.get('load_from'):
        is_trained = not load_start(distiller, config.load_from)
    distiller.prepare()
    for teacher in distiller.teachers.values():
        teacher.prepare_data(loader.dataset)
    taken = list(itertools.islice(loader, batches))
    return distiller.to(get_device()), is_trained, taken


def load_start(distiller: Distiller, path: str) -> list[str]:
    """Load what ``load_from`` names as a training run does, which leaves out entries of another shape.

    Args:
        distiller: Its student is given the weights.
        path: A file or a URL.

    Returns:
        The student's entries that keep the weights they have, such as the classifier of other classes.
    """
    found = read_checkpoint(path, f"load_from='{path}'")['state_dict']
    own = distiller.student.state_dict()
    fitting = {
        key: found[key] for key in own if key in found and found[key].shape == own[key].shape
    }
    distiller.student.load_state_dict(fitting, strict=False)
    return [key for key in own if key not in fitting and not key.endswith('num_batches_tracked')]


def load_student(distiller: Distiller, checkpoint: str, key: str = '--checkpoint') -> None:
    """Load the weights of a student, and the connectors in the checkpoint if they match the losses."""
    where = f'{key} {checkpoint}'
    content = read_checkpoint(checkpoint, where, 'name the checkpoint of a trained student')
    load_weights(distiller.student, content, where)
    connectors = content.get(STATE, {}).get('connectors', {})
    if connectors:
        try:
            distiller.load_connector_state(connectors)
        except ConfigError:
            print(
                f'{where}: was trained with other losses, so connectors have their initial weights'
            )
