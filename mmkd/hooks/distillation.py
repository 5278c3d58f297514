"""Keep what only a distillation has: connectors and averages in checkpoints, classes, teachers."""

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
    """Add a :class:`DistillationHook` to the ``default_hooks`` of a config that distils and has none."""
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
    """Add the hooks of mmkd to a config that a tool has checked: one that distils, or a plain one."""
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
    """Checks a distillation before its first iteration and keeps what only it needs in checkpoints.

    Connectors, loss weights that were measured, and the average of the student where that is its
    teacher, lie under the key ``distillation`` beside ``state_dict``, which stays that of the plain
    student. mmkd's tools add the hook themselves (:func:`add_distillation_hook`); for others write into
    the config ``default_hooks=dict(distillation=dict(type='DistillationHook'))``.
    """

    def __init__(self, data_checked: bool = False) -> None:
        super().__init__(data_checked)
        self._text: tuple[Config, str] | None = None

    def before_run(self, runner: Runner) -> None:
        super().before_run(runner)
        model = _distiller(runner)
        # Before weights are initialised, which may need to know which class is which.
        if model is not None and model.classes is None and isinstance(runner._train_loop, BaseLoop):
            meta = getattr(runner.train_dataloader.dataset, 'metainfo', None) or {}
            model.classes = meta.get('classes')

    def before_train(self, runner: Runner) -> None:
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
        """Refuse what mmengine's strategies for large models would lose without a word."""
        strategy = getattr(runner, 'strategy', None)
        name = type(strategy).__name__
        if not isinstance(strategy, (FSDPStrategy, DeepSpeedStrategy)):
            return
        for teacher in filter(model.teachers.is_average, model.teachers.used):
            raise ConfigError(
                f'{model.teachers.config_key(teacher)}.ema: a student that {name} shares out cannot be '
                f'averaged; use DDPStrategy, or a teacher from a checkpoint'
            )
        for entry in model.entries.values():
            if entry.ratio:
                raise ConfigError(
                    f'losses.{entry.name}.loss_weight: gradients of single losses cannot be measured where '
                    f'{name} shards the weights; use DDPStrategy, or give a number'
                )
        if isinstance(strategy, FSDPStrategy) and not strategy._is_full_state_dict():
            raise ConfigError(
                f'{name} would write a piece of the student for each process; set '
                f"strategy.type='StudentFSDPStrategy' or strategy.state_dict_cfg='full'"
            )
        if isinstance(strategy, DeepSpeedStrategy) and model.connector_state():
            if getattr(runner, '_resume', False):
                raise ConfigError(
                    'DeepSpeedStrategy does not save the connectors of the losses, so that a run with '
                    'connectors cannot be resumed with it; start anew, or use StudentFSDPStrategy'
                )
            runner.logger.warning(
                'DeepSpeedStrategy does not save the connectors of the losses: this training cannot be '
                'resumed'
            )

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        model = _distiller(runner)
        # Where gradients of several batches are added up, weights change after the last of them.
        changed = getattr(runner.optim_wrapper, 'should_update', lambda: True)
        if model is not None and changed():
            model.teachers.update_averages(model.student)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        model = _distiller(runner)
        if model is None:
            return
        self._embed_student_config(runner, checkpoint)
        connectors = model.connector_state()
        if _is_sharded(runner):
            # What FSDP has gathered, on the rank that writes it; the model's own are shards.
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
        # A run's own config, which mmengine has written there, is not replaced if it has that name.
        own = os.path.basename(runner.cfg.filename or '') == STUDENT_FILE
        if is_main_process() and has_student(runner.cfg) and not own:
            Path(path).write_text(self._student_text(runner.cfg), encoding='utf-8')

    def _student_text(self, config: Config) -> str:
        """The config of the student, which takes a quarter of a second to format."""
        if self._text is None or self._text[0] is not config:
            self._text = (config, student_config(config).pretty_text)
        return self._text[1]

    def _embed_student_config(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Let a checkpoint carry the config of the student, which loads without mmkd."""
        if not has_student(runner.cfg):
            return
        text = self._student_text(runner.cfg)
        checkpoint['meta']['cfg'] = text
        # Where mmengine's inferencers look first.
        info = (checkpoint.get('message_hub') or {}).get('runtime_info') or {}
        if 'cfg' in info:
            info['cfg'] = text

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        model = _distiller(runner)
        # Only a resumed training goes on with its connectors; load_from takes the student alone.
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
    """Whether weights lie in shards, as in mmengine's FSDPStrategy."""
    return isinstance(runner.model, FullyShardedDataParallel)


def _distiller(runner: Runner) -> Distiller | None:
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    return model if isinstance(model, Distiller) else None
