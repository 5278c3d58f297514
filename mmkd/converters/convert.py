"""Convert the names of published weights, or raise an error with the reason."""

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
# Keys that may contain the weights in a file; a training checkpoint of DINO has a teacher and a student.
WEIGHT_KEYS = ('teacher', 'model', 'state_dict')


def find_format(source: str) -> Format:
    """The checkpoint format of the given name.

    Raises:
        ConfigError: The format does not exist; the message suggests similar names.
    """
    if source not in FORMATS:
        raise ConfigError(
            f'source: must be one of {", ".join(FORMATS)}, got {source!r}'
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
    """Convert the names of weights.

    Args:
        source: The publisher of the weights, a key of ``FORMATS``.
        state: Content of the file: weights by name, or a dict with the weights under ``teacher``,
            ``model`` or ``state_dict``.
        class_token: Keep the class token of a vision transformer and its position embedding.
        backbone_only: Of a detector (``vitdet``), return only the backbone, with names as in the backbone.
            By default names start with ``backbone.`` and ``neck.``.
        where: Name of the file in messages.

    Returns:
        Weights with the names of :class:`~mmkd.models.VisionTransformer`, or of MMDetection's backbone.

    Raises:
        ConfigError: ``source`` is not a key of ``FORMATS``.
        CheckpointError: The file has another format, lacks weights, or has unknown weights; the message
            names them.
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
    """The weights of the submodule ``name``, with names as in that submodule."""
    return {key[len(name) + 1 :]: state[key] for key in state if key.startswith(f'{name}.')}


def _weights(state: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in WEIGHT_KEYS:
        if isinstance(state.get(key), Mapping):
            state = state[key]
            break
    return {str(key).removeprefix('module.'): value for key, value in state.items()}


def _drop_class_position(state: State, key: str) -> None:
    """Drop the position embedding of the class token, if one precedes those of a square of patches."""
    positions = state[key]
    if math.isqrt(positions.shape[1]) ** 2 != positions.shape[1]:
        state[key] = positions[:, 1:].clone()  # torch.save would write the whole storage of a view
