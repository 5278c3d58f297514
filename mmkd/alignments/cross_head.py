"""Run the teacher's head on the student's maps (CrossKD)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, PathError, did_you_mean
from ..families.dense_heads import dense_head
from ..method_override import MethodOverride
from ..recorder import Source
from ..types import Detector
from .base import Step, strides_of
from .features import levels_of

HEAD_PREFIX = 'bbox_head.'


class CrossHead:
    """Runs the teacher's head on the student's maps, from one of its layers on.

    Wang et al., "CrossKD", CVPR 2024 (arXiv 2306.11369), sec. 3.2. As in the published code, each channel
    of the student's maps first gets the mean and deviation of the teacher's channel.

    Args:
        layer: Path of the layer in the teacher, e.g. ``bbox_head.cls_convs.2.gn``.

    Raises:
        ConfigError: The layer does not belong to the dense head.
    """

    def __init__(self, layer: str) -> None:
        if not layer.startswith(HEAD_PREFIX):
            raise ConfigError(
                f"align.crossed: must be a layer of the teacher's bbox_head, got '{layer}'"
            )
        #: The recorded output of the teacher, and of the student if its entry names no other.
        self.source = Source(layer, copy=True)
        self.layer = layer.removeprefix(HEAD_PREFIX)

    def check(self, student: Detector, teacher: Detector, options: dict[str, Any]) -> None:
        """Check that the student's maps can replace the teacher's.

        Raises:
            ConfigError, PathError: They cannot; the message names the reason.
        """
        if options.get('cached'):
            raise ConfigError(
                "align.crossed: needs the weights of the teacher's head, which a cache does not store; train "
                'with the live teacher (without teacher.cache)'
            )
        head = teacher.bbox_head
        if not dense_head(head).can_cross:
            raise ConfigError(
                f'align.crossed: not supported for a {type(head).__name__}, because its layers read more '
                f'than the maps of one tower; remove crossed'
            )
        find_layers(head, self.layer)
        scale = options.get('scale', 1.0)
        if scale != 1:
            raise ConfigError(
                f'align.crossed: teacher.scale must be 1, got {scale:g}, because the maps of the two models '
                f'have different scales; set teacher.scale=1'
            )
        ours, theirs = (strides_of(model.bbox_head.prior_generator) for model in (student, teacher))
        if ours != theirs:
            raise ConfigError(
                f'align.crossed: both heads must have the same strides, got {ours} (student) and {theirs} '
                f'(teacher); remove crossed'
            )

    def output(self, student: Any, step: Step) -> Any:
        """Return the output of the teacher's head for the student's recorded maps; computed once per step."""
        ours = levels_of(student, 'student')
        wanted = levels_of(step.teacher_record[self.source], 'teacher')
        if [level.shape for level in ours] != [level.shape for level in wanted]:
            shapes = [[tuple(level.shape) for level in levels] for levels in (ours, wanted)]
            raise ConfigError(
                f"align.crossed: the student's maps must have the shapes of the teacher's, {shapes[1]}, got "
                f"{shapes[0]}; if channels differ, add connector=dict(type='ConvConnector', …)"
            )
        key = ('crossed', self.source, *map(id, ours))
        if key not in step.memo:
            scaled = [
                _match_statistics(level, other) for level, other in zip(ours, wanted, strict=True)
            ]
            # The value keeps the maps alive, so that their ids in the key are not reused.
            step.memo[key] = (ours, run_head_from(step.teacher.bbox_head, self.layer, scaled))
        return step.memo[key][1]


def run_head_from(head: Detector, layer: str, levels: list[Tensor]) -> Any:
    """Run a dense head with given maps as the output of one of its layers.

    The layers before it and the other towers of convolutions are not computed. The predictions of the other
    towers are meaningless. They are zeros if the maps have a gradient, which shows where they come from.

    Args:
        head: A dense head.
        layer: Path of the layer in the head, with ``*`` if the head has one tower per level:
            ``cls_convs.2.gn``, ``cls_convs.*.1.bn``.
        levels: The maps, shape (N, C, H, W) per level. The next layer may change them in place.

    Returns:
        The outputs of the head.

    Raises:
        PathError: The head has no such layer.
    """
    given = iter(levels)
    layers = find_layers(head, layer)
    replaced: dict[nn.Module, Callable] = {
        module: lambda *_, **__: next(given) for module in layers
    }
    skipped = [before for path in layers.values() for before in _layers_before(head, path, layer)]
    own = layer.split('.')[0]
    for name, tower in head.named_children():
        if name.endswith('_convs') and name != own:
            skipped += _layers(tower)
    replaced.update((module, _identity) for module in skipped)
    if all(level.requires_grad for level in levels) and torch.is_grad_enabled():
        predictors = [each for each in head.children() if type(each) is nn.Conv2d]
        replaced.update((each, partial(_predict, each)) for each in predictors)
    with ExitStack() as overrides:
        for module, forward in replaced.items():
            overrides.enter_context(MethodOverride(module, 'forward', forward))
        # Detached: the results of the skipped layers are not used.
        return head([level.detach() for level in levels])


def find_layers(head: Detector, layer: str) -> dict[nn.Module, str]:
    """Return the modules that match a path, which may contain ``*``, with their full paths.

    Raises:
        PathError: No module matches.
    """
    modules = dict(head.named_modules())
    pattern = re.compile(re.escape(layer).replace(r'\*', r'[^.]+'))
    found = {module: name for name, module in modules.items() if pattern.fullmatch(name)}
    if not found:
        raise PathError(
            f"a {type(head).__name__} has no layer '{layer}'{did_you_mean(layer, modules)}"
        )
    return found


def _layers_before(head: Detector, path: str, layer: str) -> Iterator[nn.Module]:
    """The layers of a tower before the module at ``path``."""
    parent = head
    for depth, (name, wanted) in enumerate(zip(path.split('.'), layer.split('.'), strict=True)):
        # Only modules inside a tower form a sequence: not the children of the head (the towers), and not the
        # modules at a star (the levels).
        if depth > 0 and wanted != '*':
            for sibling, module in parent.named_children():
                if sibling == name:
                    break
                yield module
        parent = parent.get_submodule(name)


def _layers(tower: nn.Module) -> Iterator[nn.Module]:
    if isinstance(tower, nn.ModuleList):
        for module in tower:
            yield from _layers(module)
    else:
        yield tower


def _predict(layer: nn.Conv2d, value: Tensor) -> Tensor:
    """Apply a prediction layer to maps with a gradient; return zeros for maps of a skipped tower."""
    if value.requires_grad:
        return nn.Conv2d.forward(layer, value)
    settings: Any = (layer.padding, layer.dilation, layer.kernel_size, layer.stride)
    size = [
        (length + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for length, pad, dilation, kernel, stride in zip(value.shape[2:], *settings, strict=True)
    ]
    return value.new_zeros(len(value), layer.out_channels, *size)


def _identity(value: Any, *_: Any, **__: Any) -> Any:
    return value


def _match_statistics(ours: Tensor, theirs: Tensor) -> Tensor:
    """Give maps the mean and deviation of other maps in each channel, over all images and positions."""
    axes, single = (0, 2, 3), ours.numel() == ours.shape[1]
    (std, mean), (wanted_std, wanted_mean) = (
        torch.std_mean(side.float(), axes, correction=0 if single else 1, keepdim=True)
        for side in (ours, theirs)
    )
    # One operation: between several, autograd would store more tensors of the size of the maps.
    scale = wanted_std / (std + 1e-6)
    return torch.addcmul(wanted_mean - mean * scale, ours.float(), scale)
