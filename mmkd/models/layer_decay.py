"""Learning rates that fall with the depth of a backbone's layers."""

from __future__ import annotations

from typing import Any

from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from ..errors import ConfigError


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayConstructor(DefaultOptimWrapperConstructor):
    """Each layer of the backbone learns ``layer_decay_rate`` times as fast as the one after it.

    Clark et al. 2020 (arXiv 2003.10555), for detectors Li et al. 2022 (arXiv 2203.16527). Neck,
    heads and whatever else there is keep the full rate. Backbones are those that have
    ``get_layer_depth``: :class:`VisionTransformer` and MMPretrain's transformers. All else in
    ``paramwise_cfg`` is as in ``DefaultOptimWrapperConstructor``.

    Raises:
        ConfigError: ``paramwise_cfg`` has no ``layer_decay_rate``, or the backbone has no depths.
    """

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        if 'layer_decay_rate' not in self.paramwise_cfg:  # without any, add_params is not called
            raise ConfigError(
                f"optim_wrapper.constructor='{type(self).__name__}' needs "
                f'paramwise_cfg=dict(layer_decay_rate=…)'
            )

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = '', *args: Any, **kwargs: Any
    ) -> None:
        super().add_params(params, module, prefix, *args, **kwargs)
        if prefix:  # a part, of which the whole will take care
            return
        depth_of = getattr(getattr(module, 'backbone', None), 'get_layer_depth', None)
        if depth_of is None:
            raise ConfigError(
                f"optim_wrapper.constructor='{type(self).__name__}': the backbone of this "
                f'{type(module).__name__} has no depths of its layers'
            )
        names = {id(value): name for name, value in module.named_parameters()}
        for group in params:
            (value,) = group['params']
            depth, depths = depth_of(names[id(value)], 'backbone.')
            scale = self.paramwise_cfg['layer_decay_rate'] ** (depths - 1 - depth)
            group['lr'] = group.get('lr', self.base_lr) * scale
