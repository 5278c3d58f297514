"""Layer-wise learning rate decay for backbones."""

from __future__ import annotations

from typing import Any

from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from ..errors import ConfigError


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayConstructor(DefaultOptimWrapperConstructor):
    """Layer-wise learning rate decay.

    The learning rate of each layer of the backbone is ``layer_decay_rate`` times that of the next layer.
    Neck, heads and all other modules have the full learning rate. See Clark et al. 2020 (arXiv
    2003.10555), and for detectors Li et al. 2022 (arXiv 2203.16527). The backbone needs a method
    ``get_layer_depth``, as :class:`VisionTransformer` and MMPretrain's transformers have. The other keys of
    ``paramwise_cfg`` are those of ``DefaultOptimWrapperConstructor``.

    Raises:
        ConfigError: ``paramwise_cfg`` has no ``layer_decay_rate``, or the backbone no ``get_layer_depth``.

    Examples:
        >>> from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS
        >>> from torch import nn
        >>> from mmkd.models import VisionTransformer
        >>> constructor = OPTIM_WRAPPER_CONSTRUCTORS.build(dict(
        ...     type='LayerDecayConstructor', paramwise_cfg=dict(layer_decay_rate=0.5),
        ...     optim_wrapper_cfg=dict(optimizer=dict(type='SGD', lr=1.0)),
        ... ))
        >>> backbone = VisionTransformer(dict(embed_dims=8, num_layers=2, num_heads=2))
        >>> groups = []
        >>> constructor.add_params(groups, nn.ModuleDict(dict(backbone=backbone)))
        >>> sorted({group['lr'] for group in groups})  # embeddings, first layer, second layer, the rest
        [0.125, 0.25, 0.5, 1.0]
    """

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        if 'layer_decay_rate' not in self.paramwise_cfg:  # if empty, add_params is not called
            raise ConfigError(
                f'optim_wrapper.paramwise_cfg: {type(self).__name__} needs layer_decay_rate; write '
                f'paramwise_cfg=dict(layer_decay_rate=…)'
            )

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = '', *args: Any, **kwargs: Any
    ) -> None:
        """Fill ``params`` with one group per parameter; called recursively, first for the whole model."""
        super().add_params(params, module, prefix, *args, **kwargs)
        if prefix:  # a submodule; the call for the whole model sets its learning rates
            return
        depth_of = getattr(getattr(module, 'backbone', None), 'get_layer_depth', None)
        if depth_of is None:
            raise ConfigError(
                f'optim_wrapper.constructor: {type(self).__name__} needs a backbone with get_layer_depth, '
                f'but that of this {type(module).__name__} has none; use another constructor'
            )
        names = {id(value): name for name, value in module.named_parameters()}
        for group in params:
            (value,) = group['params']
            depth, depths = depth_of(names[id(value)], 'backbone.')
            scale = self.paramwise_cfg['layer_decay_rate'] ** (depths - 1 - depth)
            group['lr'] = group.get('lr', self.base_lr) * scale
