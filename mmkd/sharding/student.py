"""Shard a large student over the processes of a training run."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from mmengine._strategy import FSDPStrategy
from mmengine.registry import STRATEGIES
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import lambda_auto_wrap_policy

from ..errors import ConfigError
from .units import sharding_units

FULL_CHECKPOINT = dict(
    state_dict_type='FULL_STATE_DICT',
    state_dict_config=dict(type='FullStateDictConfig', rank0_only=True),
    optim_state_dict_config=dict(type='FullOptimStateDictConfig', rank0_only=True),
)


@STRATEGIES.register_module()
class StudentFSDPStrategy(FSDPStrategy):
    """mmengine's FSDPStrategy with complete checkpoints, working resume, and support for the CPU.

    The teacher is not sharded by it. Differences to mmengine's strategy:

    - Checkpoints contain the complete weights, so they are checkpoints of the plain student.
    - The optimizer state is resumed. mmengine 0.10 passes it to torch in the argument order of torch 2.0.
    - ``clip_grad`` uses the norm of all gradients. mmengine's uses the norm of each process's shard.
    - Blocks of backbone, neck, encoder and decoder are gathered one after the other, unless
      ``model_wrapper`` sets ``auto_wrap_policy``. By default mmengine gathers the whole model at once.
    - Without CUDA it runs on the CPU, over gloo.

    Args:
        model_wrapper: Arguments of ``MMFullyShardedDataParallel``.
        options: Other arguments of mmengine's FSDPStrategy, except ``state_dict_cfg``.

    Raises:
        ConfigError: The student has weights that torch cannot shard, such as the scales of FCOS, ATSS and
            GFL.

    Examples:
        >>> from mmengine.registry import STRATEGIES
        >>> import mmkd
        >>> strategy = dict(type='StudentFSDPStrategy', model_wrapper=dict(forward_prefetch=True))
        >>> STRATEGIES.build(strategy).state_dict_type.name  # `strategy` as a config has it
        'FULL_STATE_DICT'
    """

    def __init__(self, *, model_wrapper: dict[str, Any] | None = None, **options: Any) -> None:
        whole: dict[str, Any] = copy.deepcopy(FULL_CHECKPOINT)
        if torch.cuda.is_available():
            # Without CUDA this must stay off: torch would free the tensors before they are saved.
            for key in ('state_dict_config', 'optim_state_dict_config'):
                whole[key]['offload_to_cpu'] = True
        super().__init__(model_wrapper=model_wrapper, state_dict_cfg=whole, **options)

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        single = [name for name, each in model.named_parameters() if each.dim() == 0]
        if single:
            raise ConfigError(
                f'strategy: torch cannot shard parameters without a dimension, such as {single[0]}; use '
                f'DDPStrategy or DeepSpeedStrategy for this student'
            )
        own: dict[str, Any] = dict(type='MMFullyShardedDataParallel')
        if not torch.cuda.is_available():
            own['device_id'] = 'cpu'
        chosen = set(sharding_units(model))
        own['auto_wrap_policy'] = partial(lambda_auto_wrap_policy, lambda_fn=chosen.__contains__)
        given = self.model_wrapper  # type: ignore[has-type]  # of mmengine's FSDPStrategy
        self.model_wrapper = own | dict(given or {})
        return super()._wrap_model(model)

    def build_optim_wrapper(self, optim_wrapper: Any, model: Any = None) -> Any:
        """Build the optimizer wrapper. Gradient clipping uses the norm over all processes."""
        built = super().build_optim_wrapper(optim_wrapper, model)
        if getattr(built, 'clip_grad_kwargs', None) and built.clip_func is nn.utils.clip_grad_norm_:
            built.clip_func = partial(_clip, model)
        return built

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load the optimizer state of a complete checkpoint into the shards."""
        state = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=self.optim_wrapper.optimizer, optim_state_dict=state_dict
        )
        self.optim_wrapper.load_state_dict(state)


def _clip(model: FullyShardedDataParallel, _: Any, **options: Any) -> torch.Tensor:
    return model.clip_grad_norm_(**options)
