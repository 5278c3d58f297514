"""Show detections of teacher and student on some validation images during training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.registry import HOOKS
from mmdet.structures import DetDataSample
from mmengine.dist import all_gather_object, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, Runner
from mmengine.visualization import Visualizer
from mmengine.visualization.vis_backend import MLflowVisBackend

from ..distillers import Distiller
from ..errors import ConfigError
from ..random_state import preserve_rng_state
from ..teachers import LiveTeacher
from ..visualization import (
    Boxes,
    Column,
    as_image,
    draw_panels,
    find_indices,
    ground_truth,
    image_path,
    load_image,
    predicted_boxes,
    spread_indices,
)

KEY = 'ComparisonHook'
STUDENT = 'student'


@HOOKS.register_module()
class ComparisonHook(Hook):
    """Draws ground truth, teachers and student on the same few images after each validation.

    The images go to the visualizer of the config, and so to all of its ``vis_backends``, as
    ``comparison_<image>`` at the current iteration. MLflow gets them as
    ``comparison_<image>/<iteration>.png``. The student's boxes come from the validation itself. A teacher
    runs once on each of these images. The hook does not change the training: weights stay bit-identical.

    Teachers from a checkpoint and averages of the student are shown. A cached teacher has no boxes to show.

    Args:
        images: Number of images, spread evenly over the validation data; or a list of file names, paths
            or ids.
        interval: Number of validations from one comparison to the next.
        score_thr: Minimum score of the boxes that are drawn.

    Raises:
        ConfigError: A value is invalid, or an image is not among the validation images.

    Examples:
        >>> from mmdet.registry import HOOKS
        >>> default_hooks = dict(comparison=dict(type='ComparisonHook', images=2, score_thr=0.5))
        >>> hook = HOOKS.build(default_hooks['comparison'])
        >>> hook.images, hook.interval, hook.score_thr
        (2, 1, 0.5)
    """

    priority = 'LOW'

    def __init__(
        self, images: int | Sequence[str] = 4, interval: int = 1, score_thr: float = 0.3
    ) -> None:
        if isinstance(images, str) or not images or (isinstance(images, int) and images < 1):
            raise ConfigError(
                f'{KEY}: images must be an integer of at least 1 or a list of file names, got {images!r}'
            )
        if interval < 1:
            raise ConfigError(f'{KEY}: interval must be at least 1, got {interval}')
        if not 0 <= score_thr <= 1:
            raise ConfigError(f'{KEY}: score_thr must be in [0, 1], got {score_thr}')
        self.images, self.interval, self.score_thr = images, interval, score_thr
        self._validations = 0
        self._dataset: Any = None
        #: Dataset index of each image that is shown, by its path and by its id.
        self._wanted: dict[Any, int] = {}
        #: Boxes of this validation and process, by detector and dataset index.
        self._found: dict[str, dict[int, Boxes]] = {}
        #: Boxes of frozen teachers, by teacher and dataset index; computed once.
        self._teacher_cache: dict[str, dict[int, Boxes]] = {}

    def before_run(self, runner: Runner) -> None:
        """Select the images."""
        if not isinstance(runner._val_loop, BaseLoop):
            runner.logger.warning(
                f'{KEY}: the config has no validation, so no comparison is drawn; set val_dataloader, '
                f'val_cfg and val_evaluator'
            )
            return
        self._dataset = runner.val_dataloader.dataset
        indices = (
            spread_indices(self._dataset, self.images)
            if isinstance(self.images, int)
            else find_indices(self._dataset, [str(each) for each in self.images], f'{KEY}: images')
        )
        for index in indices:
            self._wanted[image_path(self._dataset, index)] = index
            identity = self._dataset.get_data_info(index).get('img_id')
            if identity is not None:
                self._wanted[identity] = index

    def before_train(self, runner: Runner) -> None:
        """Check, before the first iteration, that the teachers' boxes can be shown."""
        if self._wanted:
            for teacher in self._teachers(runner).values():
                self._labels(runner, teacher)
            model = _distiller(runner)
            teachers = {} if model is None else model.teachers
            for name in teachers.keys() - self._teachers(runner).keys():
                runner.logger.warning(
                    f'{KEY}: {name} is not shown, as a cached teacher has no boxes'
                )

    def before_val_epoch(self, runner: Runner) -> None:
        """Discard the boxes of the previous validation."""
        self._found = {}

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[DetDataSample] | None = None,
    ) -> None:
        """Store the student's boxes on the selected images, and run the teachers on them."""
        if not self._wanted or self._validations % self.interval:
            return
        for position, sample in enumerate(outputs or ()):
            index = self._index_of(sample)
            if index is None:
                continue
            self._keep(STUDENT, index, predicted_boxes(sample))
            for name, teacher in self._teachers(runner).items():
                self._keep(
                    name,
                    index,
                    self._teacher_boxes(runner, name, teacher, index, data_batch, position),
                )

    def _keep(self, name: str, index: int, boxes: Boxes) -> None:
        self._found.setdefault(name, {})[index] = boxes.above(self.score_thr).without_overlaps()

    def _index_of(self, sample: DetDataSample) -> int | None:
        meta = sample.metainfo
        if 'img_path' not in meta and 'img_id' not in meta:
            raise ConfigError(
                f'{KEY}: val_dataloader.dataset.pipeline must have img_path or img_id in the meta_keys of '
                f'PackDetInputs, got {", ".join(meta)}; add one'
            )
        return self._wanted.get(meta.get('img_path'), self._wanted.get(meta.get('img_id')))

    def _teacher_boxes(
        self,
        runner: Runner,
        name: str,
        teacher: LiveTeacher,
        index: int,
        data_batch: Any,
        position: int,
    ) -> Boxes:
        model = _distiller(runner)
        assert model is not None
        known = self._teacher_cache.setdefault(name, {})
        if index in known and not model.teachers.is_average(name):
            return known[index]
        batch = {key: [data_batch[key][position]] for key in ('inputs', 'data_samples')}
        device = next(model.student.parameters()).device
        with preserve_rng_state():
            (sample,) = teacher.predict(batch, device)
        known[index] = predicted_boxes(sample).relabelled(self._labels(runner, teacher))
        return known[index]

    def _teachers(self, runner: Runner) -> dict[str, LiveTeacher]:
        """The teachers that predict boxes, by name; none in a run that only validates."""
        model = _distiller(runner)
        loaded = {} if model is None else model.teachers
        found = {name: each for name, each in loaded.items() if isinstance(each, LiveTeacher)}
        for each in found.values():
            if each.sharding.shard and get_world_size() > 1:
                raise ConfigError(
                    f'{KEY}: {each.name}.shard: a teacher with sharded weights cannot run on selected images '
                    f'only; remove the hook or shard'
                )
        return found

    def _labels(self, runner: Runner, teacher: LiveTeacher) -> dict[int, int]:
        model = _distiller(runner)
        assert model is not None
        return teacher.shared_labels(self._classes(), model.class_map_config)

    def _classes(self) -> Sequence[str]:
        return self._dataset.metainfo.get('classes') or ()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Draw the boxes of all processes."""
        active = self._wanted and self._validations % self.interval == 0
        self._validations += 1
        if not active:
            return
        gathered = all_gather_object(self._found)
        self._found = {}
        if not is_main_process():
            return
        found: dict[str, dict[int, Boxes]] = {}
        for part in gathered:
            for name, boxes in part.items():
                found.setdefault(name, {}).update(boxes)
        teachers = [name for name in found if name != STUDENT]
        shown = sorted(found.get(STUDENT, {}))
        stems = Counter(Path(image_path(self._dataset, index)).stem for index in shown)
        # Without training, `runner.iter` would build the training loop.
        step = runner.iter if isinstance(runner._train_loop, BaseLoop) else 0
        for index in shown:
            path = Path(image_path(self._dataset, index))
            figure = draw_panels(
                [load_image(self._dataset, index)],
                [ground_truth(self._dataset, index)],
                [Column(name, [found[name][index]]) for name in (*teachers, STUDENT)],
                self._classes(),
                [path.name],
            )
            name = path.stem if stems[path.stem] == 1 else f'{path.stem}_{index}'
            _show(runner.visualizer, f'comparison_{name}', as_image(figure), step)


def _show(visualizer: Visualizer, name: str, image: np.ndarray, step: int) -> None:
    """Pass an image to all backends of a visualizer."""
    backends = visualizer._vis_backends.values()
    if not any(isinstance(each, MLflowVisBackend) for each in backends):
        visualizer.add_image(name, image, step)
        return
    for each in backends:
        # MLflow uses the name as a file name, and would overwrite the image of the previous step.
        is_file = isinstance(each, MLflowVisBackend)
        each.add_image(f'{name}/{step}.png' if is_file else name, image, step)


def _distiller(runner: Runner) -> Distiller | None:
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    return model if isinstance(model, Distiller) else None
