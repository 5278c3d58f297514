"""Check a run before its first iteration, and stop it before a NaN reaches the weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from mmdet.registry import HOOKS
from mmengine.dist import all_reduce, is_distributed
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn

from ..datasets.loading import drop_flat_boxes, name_failing_images
from ..errors import UserError
from ..preflight import PlannedRun, require
from ..preflight.annotations import unwrapped_datasets
from ..random_state import preserve_rng_state

# Environment variable; with `warn` a run continues after a NaN, as in plain MMDetection.
SETTING = 'MMKD_NAN'
LAST_FINITE = 'last_finite.pth'
MAX_NAMES = 8
# Gradients of larger parameters are not checked: that would cost up to 2 % of a step. A NaN reaches the
# gradients of all earlier layers. These have biases, normalisation layers or, in the first layer, few
# channels, so a smaller parameter shows it.
MAX_ELEMENTS = 10_000


class NonFiniteError(UserError, ArithmeticError):
    """A NaN or infinite loss or gradient; :class:`GuardHook` raises it.

    Examples:
        >>> from mmkd.errors import UserError
        >>> from mmkd.hooks import NonFiniteError
        >>> error = NonFiniteError('iteration 4: loss_bbox is NaN or infinite')
        >>> isinstance(error, UserError), isinstance(error, ArithmeticError)
        (True, True)
    """


@HOOKS.register_module()
class GuardHook(Hook):
    """Checks a run before it starts, and stops it at a NaN or infinite loss or gradient.

    One NaN loss makes all weights NaN in the next step, and MMDetection continues with them. The hook
    checks the losses before the backward pass, and the gradients of biases and other small parameters
    before the optimizer step. The weights are then still those of the last finite step; the hook saves
    them as ``last_finite.pth``. With the environment variable ``MMKD_NAN=warn`` the run continues. mmkd's
    tools add this hook; with distillation they add its subclass :class:`mmkd.hooks.DistillationHook`.

    Args:
        data_checked: Whether the tool that starts the run has already checked everything except large
            data sets.

    Examples:
        >>> from mmdet.registry import HOOKS
        >>> default_hooks = dict(guard=dict(type='GuardHook'))
        >>> HOOKS.build(default_hooks['guard']).data_checked
        False
    """

    priority = 'NORMAL'

    def __init__(self, data_checked: bool = False) -> None:
        self.data_checked = data_checked
        self._removable: list[Any] = []
        self._images: list[str] = []
        self._has_warned = False

    def before_run(self, runner: Runner) -> None:
        """Check the config and the data, and prepare the data sets.

        Data sets then name images that cannot be read, and drop boxes without an area.
        """
        built = {
            mode: loop.dataloader.dataset
            for mode, loop in (('train', runner._train_loop), ('val', runner._val_loop))
            if isinstance(loop, BaseLoop)
        }
        if 'train' not in built:
            return
        cfg = runner.cfg
        run = PlannedRun(cfg, tuple(built), path=cfg.filename or '', built=built)
        if not self.data_checked or any(data.is_large() for data in run.planned_data):
            require(run, runner.logger.warning)
        for dataset in built.values():
            for leaf in unwrapped_datasets(dataset):
                if hasattr(leaf, 'prepare_data'):
                    name_failing_images(leaf)
        flat_anywhere = False
        for leaf in unwrapped_datasets(built['train']):
            flat = drop_flat_boxes(leaf) if hasattr(leaf, 'get_data_info') else []
            if flat:
                flat_anywhere = True
                more = ', …' if len(flat) > MAX_NAMES else ''
                runner.logger.warning(
                    f'{leaf.ann_file}: {len(flat)} boxes without an area are not used for training: '
                    f'{", ".join(flat[:MAX_NAMES])}{more}'
                )
        if flat_anywhere:
            restart_workers(runner)

    def before_train(self, runner: Runner) -> None:
        """Register the checks of losses and gradients."""
        self._removable = [
            runner.model.register_forward_hook(
                lambda module, args, kwargs, output: self._check_losses(
                    runner, kwargs, args, output
                ),
                with_kwargs=True,
            )
        ]
        wrapper = runner.optim_wrapper
        if isinstance(wrapper, OptimWrapper) and hasattr(
            wrapper.optimizer, 'register_step_pre_hook'
        ):
            self._removable.append(
                wrapper.optimizer.register_step_pre_hook(
                    lambda optimizer, *_: self._check_gradients(runner, optimizer)
                )
            )

    def after_train(self, runner: Runner) -> None:
        """Remove the checks of losses and gradients."""
        for each in self._removable:
            each.remove()
        self._removable = []

    def _check_losses(self, runner: Runner, kwargs: dict, args: tuple, output: Any) -> None:
        mode = kwargs.get('mode', args[2] if len(args) > 2 else None)
        if mode != 'loss' or not isinstance(output, dict):
            return
        samples = kwargs.get('data_samples', args[1] if len(args) > 1 else None)
        self._images = [str(getattr(sample, 'img_path', '?')) for sample in samples or ()]
        losses = {name: value for name, value in output.items() if 'loss' in name}
        flat = [each for value in losses.values() for each in _tensors(value)]
        if not flat or _all_finite([each.detach().float().sum() for each in flat]):
            return
        bad = [
            name
            for name, value in losses.items()
            if not all(bool(each.detach().isfinite().all()) for each in _tensors(value))
        ]
        self._stop(runner, f'{" and ".join(bad) or "a loss of another process"} is NaN or infinite')

    def _check_gradients(self, runner: Runner, optimizer: torch.optim.Optimizer) -> None:
        weights = [
            weight
            for group in optimizer.param_groups
            for weight in group['params']
            if weight.grad is not None and not weight.grad.is_sparse
        ]
        weights = [weight for weight in weights if weight.numel() <= MAX_ELEMENTS] or weights
        if not weights or _all_finite(torch._foreach_norm([weight.grad for weight in weights])):
            return
        bad = [
            name
            for name, weight in _plain(runner.model).named_parameters()
            if weight.grad is not None and not bool(weight.grad.isfinite().all())
        ]
        shown = f'{", ".join(bad[:3])}{", …" if len(bad) > 3 else ""}'
        self._stop(
            runner, f'the gradient of {shown or "a weight of another process"} is NaN or infinite'
        )

    def _stop(self, runner: Runner, what: str) -> None:
        more = ', …' if len(self._images) > MAX_NAMES else ''
        message = (
            f'iteration {runner.iter + 1}: {what}, for the images '
            f'{", ".join(self._images[:MAX_NAMES])}{more}'
        )
        if os.environ.get(SETTING) == 'warn':
            if not self._has_warned:  # from here on everything is NaN
                self._has_warned = True
                runner.logger.warning(f'{message}; the run continues, as {SETTING}=warn is set')
            return
        runner.save_checkpoint(runner.work_dir, LAST_FINITE, save_optimizer=False, by_epoch=False)
        raise NonFiniteError(
            f'{message}; the weights before this iteration are in '
            f'{os.path.join(runner.work_dir, LAST_FINITE)}; check the boxes of these images, lower the '
            f'learning rate or clip gradients; with {SETTING}=warn the run continues'
        )


def restart_workers(runner: Runner) -> None:
    """Restart the data loader workers, so that they use a changed pipeline.

    An ``IterBasedTrainLoop`` of mmengine 0.10.7 starts the workers when it is built.
    """
    iterator: Any = getattr(runner.train_loop, 'dataloader_iterator', None)
    if getattr(iterator, '_iterator', None) is not None:
        loader = runner.train_dataloader
        loader._iterator = None  # otherwise persistent workers would be reused
        with preserve_rng_state():
            iterator._iterator = iter(loader)


def _tensors(value: Any) -> list[Tensor]:
    """The tensors of one loss, which is a tensor or a list of tensors."""
    if isinstance(value, Tensor):
        return [value]
    return [each for each in value if isinstance(each, Tensor)] if isinstance(value, list) else []


@torch.no_grad()
def _all_finite(values: Sequence[Tensor]) -> bool:
    """Whether scalars are finite on all processes; synchronizes with the device once.

    Each scalar is the sum or the norm of a tensor. It is finite if the tensor is, up to 1e38.
    """
    bad = (~torch.stack([*values]).isfinite()).any().float()
    if is_distributed():
        all_reduce(bad, 'max')
    return not bool(bad)


def _plain(model: Any) -> nn.Module:
    return model.module if is_model_wrapper(model) else model
