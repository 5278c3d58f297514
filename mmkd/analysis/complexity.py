"""Cost of a detector at inference: parameters, multiply-adds, milliseconds per image.

For any MMDetection detector. A Distiller is measured as its plain student, without the teacher.
"""

from __future__ import annotations

import contextlib
import io
import math
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.analysis import FlopAnalyzer
from mmengine.analysis.jit_handles import get_shape
from mmengine.config import Config
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.device import get_device
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope

from ..checkpoints import load_weights, read_checkpoint
from ..types import Detector


@dataclass(frozen=True)
class Complexity:
    """The cost of a detector.

    Attributes:
        parameters: Number of parameters, trainable or not.
        flops: Multiply-adds for one image. One multiplication with its addition counts as one, as in the
            GFLOPs of MMDetection.
        input_size: Height and width of the network input with padding, px.
        ms_per_image: Median time of one image with batch size one: preprocessing on the device, network,
            decoding and NMS, without reading the file. ``None`` if it was not timed.
    """

    parameters: int
    flops: int
    input_size: tuple[int, int]
    ms_per_image: float | None


def load_detector(config: Config, checkpoint: str | None, device: str | None = None) -> BaseModel:
    """Build the detector of a config for inference.

    Args:
        config: An MMDetection config.
        checkpoint: The weights, which must match without missing or unexpected keys; ``None`` for random
            weights.
        device: A torch device; by default the GPU if available.

    Raises:
        MissingFileError: The checkpoint does not exist.
        CheckpointError: Reading the checkpoint would run code, or it does not match the config.
    """
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(config.model)
    if checkpoint is not None:
        where = f'checkpoint {checkpoint}'
        load_weights(model, read_checkpoint(str(checkpoint), where), where)
    model.to(device or get_device())
    model.eval()
    return model


def build_test_data(config: Config, loader: str = 'test_dataloader') -> BaseDataset:
    """Build the test data set of a config.

    Args:
        config: An MMDetection config.
        loader: ``'test_dataloader'`` or ``'val_dataloader'``.
    """
    scope = DefaultScope.overwrite_default_scope(config.get('default_scope') or 'mmdet')
    with scope, contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        return DATASETS.build(config[loader].dataset)


def count_parameters(model: Detector) -> int:
    """The number of parameters, trainable or not; shared parameters count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_flops(model: Detector, inputs: torch.Tensor, **arguments: Any) -> int:
    """Multiply-adds of one forward pass, counted by mmengine.

    Attention is counted. Other operators that mmengine does not count, such as RoIAlign, NMS and
    element-wise operators, count as 0. The cost of detectors with proposals grows with the number of
    proposals, so use trained weights.

    Args:
        model: Any module; its training mode is restored.
        inputs: The first argument of ``forward``.
        **arguments: Further arguments of ``forward``, e.g. ``data_samples``.
    """
    forward, training = model.forward, model.training
    model.eval()
    # The analysis traces only positional tensors; other arguments are bound first, as in mmdet's get_flops.
    model.forward = partial(forward, **arguments)
    try:
        with torch.no_grad():
            analysis = FlopAnalyzer(model, (inputs,)).set_op_handle(
                **{'aten::scaled_dot_product_attention': _attention_flops}
            )
            analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            flops = analysis.total()
    finally:
        del model.forward  # removes the instance attribute, which restores the method of the class
        model.train(training)
    return int(flops)


def _attention_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """Multiply-adds of queries times keys and of weights times values, which mmengine does not count."""
    queries, values = get_shape(inputs[0]), get_shape(inputs[2])
    return math.prod(queries[:-1]) * values[-2] * (queries[-1] + values[-1])


def measure(
    model: BaseModel,
    dataset: BaseDataset | Sequence[dict],
    images: int = 30,
    warm_up: int = 5,
    timed: bool = True,
) -> Complexity:
    """Count and time a detector on the first images of a data set.

    Args:
        model: From :func:`load_detector`.
        dataset: From :func:`build_test_data`, or a list of outputs of its pipeline.
        images: Maximum number of images to time.
        warm_up: Number of untimed runs before.
        timed: Whether to time; without, only the first image is counted.
    """
    batches = [pseudo_collate([dataset[i]]) for i in range(min(images, len(dataset)))]
    first = model.data_preprocessor(batches[0])
    flops = count_flops(model, first['inputs'], data_samples=first['data_samples'])
    times = []
    if timed:
        for i in range(warm_up):
            time_one(model, batches[i % len(batches)])
        times = [time_one(model, batch) for batch in batches]
    return Complexity(
        parameters=count_parameters(model),
        flops=flops,
        input_size=tuple(first['inputs'].shape[-2:]),
        ms_per_image=1000 * statistics.median(times) if timed else None,
    )


def time_in_turns(
    models: Sequence[BaseModel], batches: Sequence[dict], rounds: int = 30, warm_up: int = 5
) -> list[float]:
    """Time several detectors, all of them in each round.

    Args:
        models: Detectors in evaluation mode.
        batches: One batch of the test data loader per detector.
        rounds: Number of timed rounds.
        warm_up: Number of untimed rounds before.

    Returns:
        The median seconds of each detector.
    """
    taken: list[list[float]] = [[] for _ in models]
    for index in range(warm_up + rounds):
        # Rotate the order, so that no detector always runs after the same one.
        for turn in range(len(models)):
            i = (index + turn) % len(models)
            taken[i].append(time_one(models[i], batches[i]))
    return [statistics.median(times[warm_up:]) for times in taken]


@torch.no_grad()
def time_one(model: BaseModel, batch: dict) -> float:
    """Seconds of one ``test_step``.

    Args:
        model: A detector in evaluation mode.
        batch: A batch of the test data loader.
    """
    wait = torch.cuda.synchronize if torch.cuda.is_available() else _nothing
    wait()
    start = time.perf_counter()
    model.test_step(batch)
    wait()  # calls on a GPU return before they have finished
    return time.perf_counter() - start


def processor_name() -> str:
    """The name of the GPU if available, else of the CPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
        return next(line.split(':', 1)[1].strip() for line in lines if 'model name' in line)
    return platform.processor() or platform.machine()


def device_name() -> str:
    """The name of the GPU if available, else of the CPU with the number of torch threads."""
    name = processor_name()
    return name if torch.cuda.is_available() else f'{name}, {torch.get_num_threads()} threads'


def _nothing() -> None:
    pass
