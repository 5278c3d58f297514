"""What a detector costs: parameters, multiply-adds, milliseconds per image.

For any MMDetection detector as it is deployed, that is for the plain student and never for a
Distiller with its teacher.
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
        parameters: How many, trainable or not.
        flops: Multiply-adds for one image, counted as MMDetection counts its GFLOPs: one
            multiplication with its addition is one.
        input_size: Height and width of that image as the network sees it, padding included, px.
        ms_per_image: Median time of one image, batch size one: preprocessing on the device,
            network, decoding and NMS; without reading the file. ``None`` if it was not timed.
    """

    parameters: int
    flops: int
    input_size: tuple[int, int]
    ms_per_image: float | None


def load_detector(config: Config, checkpoint: str | None, device: str | None = None) -> BaseModel:
    """Build a config's detector for inference.

    Args:
        config: An MMDetection config.
        checkpoint: Its weights, which must fit without a missing or unexpected key; ``None`` for
            random ones.
        device: As torch names it; by default the GPU where there is one.

    Raises:
        MissingFileError: The checkpoint does not exist.
        CheckpointError: It would run code when read, or does not fit the config.
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
    """The dataset a config is tested on.

    Args:
        config: An MMDetection config.
        loader: Or ``'val_dataloader'``, the one a run is validated on.
    """
    scope = DefaultScope.overwrite_default_scope(config.get('default_scope') or 'mmdet')
    with scope, contextlib.redirect_stdout(io.StringIO()):  # pycocotools says what it does
        return DATASETS.build(config[loader].dataset)


def count_parameters(model: Detector) -> int:
    """The number of parameters, trainable or not, each shared one once.

    Args:
        model: Any module.
    """
    return sum(parameter.numel() for parameter in model.parameters())


def count_flops(model: Detector, inputs: torch.Tensor, **arguments: Any) -> int:
    """Multiply-adds of one forward pass, by mmengine's analysis.

    Operators that mmengine does not count, such as RoIAlign and NMS, count nothing, but for attention; so do
    element-wise ones. Detectors with proposals cost more the more proposals they keep, so give trained
    weights.

    Args:
        model: Any module; left in the mode it was in.
        inputs: The first argument of its ``forward``.
        **arguments: The further ones, e.g. ``data_samples``.
    """
    forward, training = model.forward, model.training
    model.eval()
    # The analysis traces positional tensors only; the rest is bound beforehand, as mmdet's
    # get_flops does.
    model.forward = partial(forward, **arguments)
    try:
        with torch.no_grad():
            analysis = FlopAnalyzer(model, (inputs,)).set_op_handle(
                **{'aten::scaled_dot_product_attention': _attention_flops}
            )
            analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            flops = analysis.total()
    finally:
        del model.forward  # the instance attribute; the class's method shows again
        model.train(training)
    return int(flops)


def _attention_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """Queries times keys, then weights times values; mmengine's analysis has no count of its own."""
    queries, values = get_shape(inputs[0]), get_shape(inputs[2])
    return math.prod(queries[:-1]) * values[-2] * (queries[-1] + values[-1])


def measure(
    model: BaseModel,
    dataset: BaseDataset | Sequence[dict],
    images: int = 30,
    warm_up: int = 5,
    timed: bool = True,
) -> Complexity:
    """Count and time a detector on the first images of a dataset.

    Args:
        model: From :func:`load_detector`.
        dataset: From :func:`build_test_data`, or what its pipeline gave.
        images: How many to time; fewer if the dataset has fewer.
        warm_up: How many to run before.
        timed: Otherwise the first image is counted and nothing timed.
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
    """Time several detectors one after the other in each round.

    Args:
        models: In evaluation mode.
        batches: One of each, as its test data loader gives it.
        rounds: How many count.
        warm_up: How many are run before.

    Returns:
        The median seconds of each.
    """
    taken: list[list[float]] = [[] for _ in models]
    for index in range(warm_up + rounds):
        # Each round starts with another one: none always runs in the wake of the same.
        for turn in range(len(models)):
            i = (index + turn) % len(models)
            taken[i].append(time_one(models[i], batches[i]))
    return [statistics.median(times[warm_up:]) for times in taken]


@torch.no_grad()
def time_one(model: BaseModel, batch: dict) -> float:
    """Seconds one ``test_step`` takes.

    Args:
        model: A detector in evaluation mode.
        batch: As the test data loader gives it.
    """
    wait = torch.cuda.synchronize if torch.cuda.is_available() else _nothing
    wait()
    start = time.perf_counter()
    model.test_step(batch)
    wait()  # a GPU returns before it has finished
    return time.perf_counter() - start


def processor_name() -> str:
    """The GPU where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
        return next(line.split(':', 1)[1].strip() for line in lines if 'model name' in line)
    return platform.processor() or platform.machine()


def device_name() -> str:
    """On what is measured: the GPU, or the CPU with the number of torch's threads."""
    name = processor_name()
    return name if torch.cuda.is_available() else f'{name}, {torch.get_num_threads()} threads'


def _nothing() -> None:
    pass
