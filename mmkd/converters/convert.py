"""From one set of names to another, or an error with the reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..checkpoints import summarize_keys
from ..errors import CheckpointError, ConfigError, did_you_mean
from .format import Format, State
from .mobilenet_v2 import TORCHVISION_MOBILENET_V2
from .vision_transformers import DINO, DINOV2, MAE
from .vitdet import VITDET

FORMATS = {
    'dino': DINO,
    'dinov2': DINOV2,
    'mae': MAE,
    'torchvision-mobilenetv2': TORCHVISION_MOBILENET_V2,
    'vitdet': VITDET,
}
# Where the weights lie if a file holds more than them; a checkpoint of DINO has a teacher and a student.
HOLDERS = ('teacher', 'model', 'state_dict')


def find_format(source: str) -> Format:
    """The format of that name.

    Raises:
        ConfigError: There is none; the message offers near names.
    """
    if source not in FORMATS:
        raise ConfigError(
            f'source={source!r} is no format of checkpoints; there are {", ".join(FORMATS)}'
            f'{did_you_mean(str(source), FORMATS)}'
        )
    return FORMATS[source]


def convert(
    source: str,
    state: Mapping[str, Any],
    class_token: bool = True,
    backbone_only: bool = False,
    where: str = 'this checkpoint',
) -> State:
    """Rename weights.

    Args:
        source: A name in ``FORMATS``: where the weights come from.
        state: A file's content: weights by name, or a dict that holds them under ``teacher``, ``model``
            or ``state_dict``.
        class_token: Whether a vision transformer's class token and its position are kept.
        backbone_only: Of a detector (``vitdet``), only the backbone, by the backbone's own names; else
            names begin with ``backbone.`` and ``neck.``.
        where: How messages call the file.

    Returns:
        Weights by the names of :class:`~mmkd.models.VisionTransformer`, or of MMDetection's backbone.

    Raises:
        ConfigError: There is no such format.
        CheckpointError: The file is of another format, lacks something or has what the format does not
            know; the message names it.
    """
    form = find_format(source)
    state = _weights(state)
    converted, missing, unknown = form.match(state)
    if missing or unknown:
        others = [name for name, other in FORMATS.items() if not any(other.match(state)[1:])]
        looks = f'looks like {" or ".join(others)}, not' if others else 'is not'
        problems = [summarize_keys('missing', missing), summarize_keys('unknown', unknown)]
        raise CheckpointError(
            f'{where} {looks} {source}: {"; ".join(problem for problem in problems if problem)}'
        )
    if source == 'vitdet':
        _drop_class_position(converted, 'backbone.pos_embed')
        if backbone_only:
            converted = part(converted, 'backbone')
    elif not class_token and converted.pop('cls_token', None) is not None:
        _drop_class_position(converted, 'pos_embed')
    return converted


def part(state: Mapping[str, Any], name: str) -> State:
    """What lies under ``name``, by the names it has inside."""
    return {key[len(name) + 1 :]: state[key] for key in state if key.startswith(f'{name}.')}


def _weights(state: Mapping[str, Any]) -> Mapping[str, Any]:
    for holder in HOLDERS:
        if isinstance(state.get(holder), Mapping):
            state = state[holder]
            break
    return {str(key).removeprefix('module.'): value for key, value in state.items()}


def _drop_class_position(state: State, key: str) -> None:
    """Positions of a square of patches may have one of the class token before them."""
    positions = state[key]
    if math.isqrt(positions.shape[1]) ** 2 != positions.shape[1]:
        state[key] = positions[:, 1:].clone()  # a view would be saved with all it is a view of
