"""Prepare a distillation, and save and load its state: connectors, averages and measured loss weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mmdet.registry import HOOKS
from mmengine._strategy import DeepSpeedStrategy, FSDPStrategy
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, Runner
from torch.distributed.fsdp import FullyShardedDataParallel

from ..distillers import Distiller
from ..distillers.distiller import CONNECTORS
from ..errors import ConfigError
from .guard import GuardHook, restart_workers
from .student_config import STUDENT_FILE, has_student, student_config

STATE = 'distillation'
HOOK_KEY = 'distillation'
GUARD_KEY = 'guard'


def add_distillation_hook(config: Config) -> None:
    """Add a :class:`DistillationHook` to ``default_hooks`` if the config distils and has no such hook."""
    hooks = config.get('default_hooks') or {}
    declared = [*hooks.values(), *(config.get('custom_hooks') or ())]
    named = [str((each or {}).get('type')) for each in declared]
    distils = str((config.get('model') or {}).get('type')).endswith(Distiller.__name__)
    if (
        distils
        and HOOK_KEY not in hooks
        and not any(DistillationHook.__name__ in it for it in named)
    ):
        config.merge_from_dict({'default_hooks': {HOOK_KEY: dict(type=DistillationHook.__name__)}})


def add_hooks(config: Config) -> None:
    """Add the hooks of mmkd to a config, with or without distillation, that a tool has already checked."""
    add_distillation_hook(config)
    hooks = config.get('default_hooks') or {}
    names = (DistillationHook.__name__, GuardHook.__name__)
    declared = [each for each in (*hooks.values(), *(config.get('custom_hooks') or ())) if each]
    ours = [each for each in declared if each.get('type') in names]
    if not ours:
        ours = [dict(type=GuardHook.__name__)]
        config.merge_from_dict({'default_hooks': {GUARD_KEY: ours[0]}})
        ours = [config.default_hooks[GUARD_KEY]]
    for each in ours:
        each.setdefault('data_checked', True)


@HOOKS.register_module()
class DistillationHook(GuardHook):
    """Checks a distillation before its first iteration and saves its state in checkpoints.

    Checkpoints get an entry ``distillation`` with the connectors, the measured loss weights, and the
    average of the student if that is a teacher. Their ``state_dict`` stays that of the plain student.
    mmkd's tools add the hook (:func:`add_distillation_hook`). With other tools, add it to the config:
    ``default_hooks=dict(distillation=dict(type='DistillationHook'))``.

    Examples:
        >>> from mmengine.config import Config
        >>> from mmkd.hooks import add_distillation_hook
        >>> config = Config(dict(model=dict(type='Distiller')))
        >>> add_distillation_hook(config)
        >>> config.default_hooks.distillation
        {'type': 'DistillationHook'}
    """

    def __init__(self, data_checked: bool = False) -> None:
        super().__init__(data_checked)
        self._text: tuple[Config, str] | None = None

    def before_run(self, runner: Runner) -> None:
        """Check the run, and set the class names of the distiller to those of the training data."""
        super().before_run(runner)
        model = _distiller(runner)
        # Initialising the weights, which comes next, may need the class names.
        if model is not None and model.classes is None and isinstance(runner._train_loop, BaseLoop):
            meta = getattr(runner.train_dataloader.dataset, 'metainfo', None) or {}
            model.classes = meta.get('classes')

    def before_train(self, runner: Runner) -> None:
        """Load the teachers, prepare their data, and write the student's config to the work directory."""
        super().before_train(runner)
        model = _distiller(runner)
        if model is None or not model.entries:
            return
        model.has_hook = True
        self._write_student_config(runner)
        self._check_strategy(runner, model)
        model.prepare()
        for teacher in model.teachers.values():
            teacher.prepare_data(runner.train_dataloader.dataset, model.data_preprocessor)
        if any(map(model.teachers.is_cached, model.teachers)):
            restart_workers(runner)
        student_size = sum(parameter.numel() for parameter in model.student.parameters())
        teachers = ' and '.join(
            f'{type(teacher.detector).__name__} ({teacher.num_parameters() / 1e6:.2f} M parameters, '
            f'{teacher.origin})'
            for teacher in model.teachers.values()
        )
        runner.logger.info(
            f'Distilling {teachers} into {type(model.student).__name__} '
            f'({student_size / 1e6:.2f} M) by {", ".join(model.entries)}'
            f'{"" if model.task_losses else ", without labels"}'
        )

    def _check_strategy(self, runner: Runner, model: Distiller) -> None:
        """Reject settings that would silently lose state with mmengine's strategies for large models."""
        strategy = getattr(runner, 'strategy', None)
        name = type(strategy).__name__
        if not isinstance(strategy, (FSDPStrategy, DeepSpeedStrategy)):
            return
        for teacher in filter(model.teachers.is_average, model.teachers.used):
            raise ConfigError(
                f'{model.teachers.config_key(teacher)}.ema: {name} shards the weights of the student, so '
                f'they cannot be averaged; use DDPStrategy, or a teacher from a checkpoint'
            )
        for entry in model.entries.values():
            if entry.ratio:
                raise ConfigError(
                    f'losses.{entry.name}.loss_weight: {name} shards the weights, and then gradients of '
                    f'single losses cannot be measured; use DDPStrategy, or set a number'
                )
        if isinstance(strategy, FSDPStrategy) and not strategy._is_full_state_dict():
            raise ConfigError(
                f'strategy: {name} would write one shard of the student per process; set '
                f"strategy.type='StudentFSDPStrategy' or strategy.state_dict_cfg='full'"
            )
        if isinstance(strategy, DeepSpeedStrategy) and model.connector_state():
            if getattr(runner, '_resume', False):
                raise ConfigError(
                    'strategy: DeepSpeedStrategy does not save the connectors of the losses, so a run with '
                    'connectors cannot be resumed; start a new run, or use StudentFSDPStrategy'
                )
            runner.logger.warning(
                'strategy: DeepSpeedStrategy does not save the connectors of the losses, so this run cannot '
                'be resumed'
            )

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        """Update the averages of the student, if its weights changed in this iteration."""
        model = _distiller(runner)
        # With gradient accumulation, weights change only after the last of several batches.
        changed = getattr(runner.optim_wrapper, 'should_update', lambda: True)
        if model is not None and changed():
            model.teachers.update_averages(model.student)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add the state of the distillation and the config of the student to a checkpoint."""
        model = _distiller(runner)
        if model is None:
            return
        self._embed_student_config(runner, checkpoint)
        connectors = model.connector_state()
        if _is_sharded(runner):
            # FSDP has gathered the full weights in the checkpoint; the model has only shards.
            weights, prefix = checkpoint['state_dict'], f'{CONNECTORS}.'
            names = [name for name in weights if name.startswith(prefix)]
            connectors = {name.removeprefix(prefix): weights.pop(name) for name in names}
        averages = model.teachers.average_state()
        state: dict[str, dict] = dict(connectors=connectors, averages=averages)
        state = {key: _on_cpu(value) for key, value in state.items() if value}
        weights = model.weight_state()
        if weights:
            state['loss_weights'] = weights
        if state:
            checkpoint[STATE] = state

    def _write_student_config(self, runner: Runner) -> None:
        path = os.path.join(runner.work_dir, STUDENT_FILE)
        # mmengine has written the run's config to this folder; do not overwrite it if it has this name.
        own = os.path.basename(runner.cfg.filename or '') == STUDENT_FILE
        if is_main_process() and has_student(runner.cfg) and not own:
            Path(path).write_text(self._student_text(runner.cfg), encoding='utf-8')

    def _student_text(self, config: Config) -> str:
        """The config of the student as text; cached, as formatting takes a quarter of a second."""
        if self._text is None or self._text[0] is not config:
            self._text = (config, student_config(config).pretty_text)
        return self._text[1]

    def _embed_student_config(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Store the config of the student in a checkpoint, so that it loads without mmkd."""
        if not has_student(runner.cfg):
            return
        text = self._student_text(runner.cfg)
        checkpoint['meta']['cfg'] = text
        # mmengine's inferencers read this entry first.
        info = (checkpoint.get('message_hub') or {}).get('runtime_info') or {}
        if 'cfg' in info:
            info['cfg'] = text

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Restore the state of the distillation when a run resumes."""
        model = _distiller(runner)
        # load_from loads only the student; a resumed run loads the connectors too.
        if model is not None and getattr(runner, '_resume', False):
            state = checkpoint.get(STATE, {})
            connectors = state.get('connectors', {})
            if _is_sharded(runner):
                names = {f'{CONNECTORS}.{name}': value for name, value in connectors.items()}
                checkpoint['state_dict'].update(names)  # for FSDP to shard
            else:
                model.load_connector_state(connectors)
            model.teachers.load_average_state(state.get('averages', {}))
            model.load_weight_state(state.get('loss_weights', {}))


def _on_cpu(state: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _on_cpu(value) if isinstance(value, dict) else value.cpu()
        for key, value in state.items()
    }


def _is_sharded(runner: Runner) -> bool:
    """Whether the weights are sharded, as in mmengine's FSDPStrategy."""
    return isinstance(runner.model, FullyShardedDataParallel)


def _distiller(runner: Runner) -> Distiller | None:
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    return model if isinstance(model, Distiller) else None
