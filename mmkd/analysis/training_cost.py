"""Cost of distillation compared to plain training: time and memory of one training step.

A distillation step consists of the student's own step, as in plain training, the teacher's forward pass, and
the distillation losses. :attr:`TrainingCost.overhead_ratio` is the time of the distillation step divided by
that of student step and teacher pass.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample, SampleList
from mmengine.structures import InstanceData
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ..alignments import Step
from ..distillers import Distiller, LossEntry
from ..distillers.step import StepRecorders, TeacherPass
from ..errors import ConfigError
from ..nested import map_tensors, tensors_of
from ..random_state import preserve_rng_state
from ..types import Detector

PASSES = ('student_step', 'teacher_pass', 'kd_step')
OBJECTS = 7  # an image of COCO train2017 has 7.3 objects on average
#: Runs a function and returns a measurement: its seconds or its bytes.
Meter = Callable[[Callable[[], Any]], float]


@dataclass(frozen=True)
class TrainingCost:
    """The cost of a training step; times are medians over rounds, in seconds.

    Attributes:
        student_step_s: Plain training step: the student's forward pass, its own losses, backward pass.
        teacher_pass_s: The modules of the teacher that the active losses read. If its head runs on the
            student's maps (CrossKD), that is included, forward and backward.
        kd_step_s: The distillation step: ``Distiller.loss`` and backward pass.
        losses_s: Per loss entry: connector, alignment and loss, and the backward pass to the recorded
            outputs of the student. Shared work of several entries, such as query matching, counts for the
            first of them.
        peak_memory_mb: Per pass, in MB of 10^6 bytes: weights of the models that run, plus the peak of other
            allocations: activations, gradients, workspaces.
        teacher_weights_mb, teacher_outputs_mb: The unavoidable part of the peak of the distillation step:
            weights and recorded outputs of the teachers.
        rounds: Seconds of the three passes in each round.
    """

    student_step_s: float
    teacher_pass_s: float
    kd_step_s: float
    losses_s: dict[str, float]
    peak_memory_mb: dict[str, float]
    teacher_weights_mb: float
    teacher_outputs_mb: float
    rounds: dict[str, list[float]] = field(repr=False)

    @property
    def overhead_ratio(self) -> float:
        """Distillation step divided by the sum of student step and teacher pass; 1 means no overhead."""
        return self.kd_step_s / (self.student_step_s + self.teacher_pass_s)

    @property
    def step_ratio(self) -> float:
        """Distillation step divided by student step."""
        return self.kd_step_s / self.student_step_s

    @property
    def memory_ratio(self) -> float:
        """Peak of the distillation step divided by the sum of student step, teacher weights and outputs."""
        needed = self.peak_memory_mb['student_step'] + self.teacher_weights_mb
        return self.peak_memory_mb['kd_step'] / (needed + self.teacher_outputs_mb)

    @property
    def overhead_quartiles(self) -> tuple[float, float]:
        """First and third quartile of the overhead ratio over rounds."""
        student, teacher, kd = (np.array(times) for times in self.rounds.values())
        low, high = np.quantile(kd / (student + teacher), (0.25, 0.75))
        return float(low), float(high)

    @property
    def shares(self) -> dict[str, float]:
        """Time of each loss entry as a fraction of the distillation step."""
        return {name: seconds / self.kd_step_s for name, seconds in self.losses_s.items()}


def measure(
    distiller: Distiller,
    batches: Iterable[dict],
    iterations: int = 10,
    warmup: int = 3,
    amp: bool = False,
) -> TrainingCost:
    """Measure time and memory of student step, teacher pass and distillation step, all in each round.

    Optimizer steps, and loading and preprocessing of images, are excluded, as plain training has them too.
    Weights, BatchNorm statistics and random number generators are restored, gradients are dropped.
    Schedules of losses are at their current step; outside a training run this is the start.

    Args:
        distiller: A distiller on its device. The cost of detectors with proposals grows with the number of
            proposals, so use trained weights.
        batches: Batches of the train data loader, before preprocessing; one per round, repeated if needed.
        iterations: Number of measured rounds.
        warmup: Number of rounds before.
        amp: Use automatic mixed precision in forward passes.

    Returns:
        Medians over the measured rounds; the peak memory is that of one additional step.

    Raises:
        ConfigError: No loss is active.
    """
    passes = _Passes(distiller, amp)
    device = next(distiller.parameters()).device
    seconds, peak_bytes = partial(_seconds, device), partial(_peak_bytes, device)
    rounds, training = [], distiller.training
    with preserve_buffers(distiller), preserve_rng_state():
        distiller.train()
        try:
            for index, raw in zip(range(warmup + iterations), cycle(batches)):  # noqa: B905
                data = distiller.data_preprocessor(raw, True)
                # Rotate the order, so that no pass always runs after the same one.
                start = index % len(PASSES)
                names = PASSES[start:] + PASSES[:start]
                taken = {name: getattr(passes, name)(data, seconds) for name in names}
                rounds.append(taken | passes.losses(data, seconds))
            peak = {name: getattr(passes, name)(data, peak_bytes) for name in PASSES}
        finally:
            distiller.zero_grad(set_to_none=True)
            distiller.train(training)
    times = {name: [taken[name] for taken in rounds[warmup:]] for name in rounds[0]}
    medians = {name: statistics.median(values) for name, values in times.items()}
    return TrainingCost(
        **{f'{name}_s': medians[name] for name in PASSES},
        losses_s={name: medians[name] for name in passes.active},
        peak_memory_mb={name: (peak[name] + passes.weights[name]) / 1e6 for name in PASSES},
        teacher_weights_mb=passes.weights['teacher_pass'] / 1e6,
        teacher_outputs_mb=passes.outputs / 1e6,
        rounds={name: times[name] for name in PASSES},
    )


def random_batch(
    size: tuple[int, int], images: int, classes: int, objects: int = OBJECTS, seed: int = 0
) -> dict:
    """A batch as from a train data loader, before preprocessing: noise images with random boxes.

    Args:
        size: Height and width of the images, px; every second image is narrower by an eighth, so that the
            batch has padding.
        images: Number of images.
        classes: Number of classes.
        objects: Number of boxes per image.
        seed: Seed of images, boxes and labels.
    """
    draw = torch.Generator().manual_seed(seed)
    inputs, samples = [], []
    for index in range(images):
        shape = (size[0], size[1] - size[1] // 8 * (index % 2))
        inputs.append(torch.randint(0, 256, (3, *shape), generator=draw, dtype=torch.uint8))
        extent = torch.tensor(shape[::-1])
        sides = (0.1 + 0.4 * torch.rand(objects, 2, generator=draw)) * extent
        corner = torch.rand(objects, 2, generator=draw) * (extent - sides)
        meta = dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0), img_id=index)
        sample = DetDataSample(metainfo=meta)
        sample.gt_instances = InstanceData(
            bboxes=torch.cat([corner, corner + sides], 1),
            labels=torch.randint(classes, (objects,), generator=draw),
        )
        sample.ignored_instances = InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
        )
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


class _Passes:
    """The measured passes. Each gets preprocessed data and a meter, with which it measures its main part."""

    def __init__(self, distiller: Distiller, amp: bool) -> None:
        distiller.prepare()
        self.distiller = distiller
        self.active = tuple(name for name, it in distiller.entries.items() if it.schedule() > 0)
        if not self.active:
            raise ConfigError('losses: none is active, so there is no distillation to measure')
        device = next(distiller.parameters()).device
        self.autocast = partial(torch.autocast, device.type, enabled=amp)
        teacher = sum(_bytes(teacher.detector) for teacher in distiller.teachers.values())
        #: Bytes of the recorded outputs of the teachers in one pass.
        self.outputs = 0
        #: Bytes of the weights of each pass.
        self.weights = dict(
            student_step=_bytes(distiller.student),
            teacher_pass=teacher,
            kd_step=_bytes(distiller) + teacher,
        )

    def student_step(self, data: dict, meter: Meter) -> float:
        """Measure a plain training step of the student."""
        return self._step(self.distiller.student, data, meter)

    def kd_step(self, data: dict, meter: Meter) -> float:
        """Measure a distillation step."""
        return self._step(self.distiller, data, meter)

    def _step(self, model: Detector, data: dict, meter: Meter) -> float:
        def run() -> None:
            with self.autocast():
                losses = model(**data, mode='loss')
            model.parse_losses(losses)[0].backward()

        self.distiller.zero_grad(set_to_none=True)
        return meter(run)

    @torch.no_grad()
    def teacher_pass(self, data: dict, meter: Meter) -> float:
        """Measure the teachers' forward passes on the recorded outputs of the student."""
        distiller = self.distiller
        record = distiller._recorders_of(self.active)

        def run() -> None:
            for each in record.passes:
                each.run_teacher(**data, preprocessor=preprocessor, student=record.student)
            deep = [
                distiller.entries[name]
                for name in self.active
                if distiller.entries[name].align.runs_teacher_layers
            ]
            # Once per student output, which several losses may read.
            for entry in {entry.student: entry for entry in deep}.values():
                self._run_on_student(entry, record, data['data_samples'])

        preprocessor = distiller.data_preprocessor
        try:
            with self.autocast():
                with record.student:
                    distiller._task_losses(**data, record=record)
                taken = meter(run)
            self.outputs = sum(map(_recorded_bytes, record.passes))
            return taken
        finally:
            record.clear()

    @torch.enable_grad()
    def _run_on_student(self, entry: LossEntry, record: StepRecorders, samples: SampleList) -> None:
        """Run the teacher's layers on the student's output, forward and backward."""
        student = record.student[entry.student]
        for name, step in record.steps(entry, samples).items():
            own = map_tensors(lambda each: each.detach().requires_grad_(), student)
            ends = _differentiable(own)
            if 'student' in entry.connectors:
                own = entry.connectors['student'](own)
            given = entry.aligns[name].run_teacher_layers(own, step)
            torch.autograd.grad(given, ends, [torch.ones_like(each) for each in given])

    def losses(self, data: dict, meter: Meter) -> dict[str, float]:
        """Measure each active entry in a step without other backward passes."""
        entries = self.distiller.entries
        metered: Any = {name: _MeteredEntry(entry, meter) for name, entry in entries.items()}
        self.distiller.entries = metered
        try:
            with self.autocast():
                self.distiller(**data, mode='loss')
        finally:
            self.distiller.entries = entries
        return {name: metered[name].taken for name in self.active}


class _MeteredEntry:
    """Wraps a loss entry to measure it and its part of the backward pass.

    That part ends at the recorded outputs of the student: from there, its gradients are added to those of the
    student's own losses, which have a backward pass in any case.
    """

    def __init__(self, entry: LossEntry, meter: Meter) -> None:
        self.entry = entry
        self.meter = meter
        self.taken = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.entry, name)

    def __call__(self, steps: Mapping[str, Step], factor: float) -> Tensor:
        record = next(iter(steps.values())).student_record
        ends = _differentiable(record[self.entry.student])
        for connector in self.entry.connectors.values():
            ends += connector.parameters()
        losses = []

        def run() -> None:
            losses.append(self.entry(steps, factor))
            if losses[0].requires_grad and ends:
                torch.autograd.grad(losses[0], ends, retain_graph=True, allow_unused=True)

        self.taken = self.meter(run)
        return losses[0]


def _differentiable(value: Any) -> list[Tensor]:
    """The tensors with a gradient in nested lists, tuples and dicts."""
    return [each for each in tensors_of(value) if each.requires_grad]


@contextmanager
def preserve_buffers(model: Detector) -> Iterator[None]:
    """Restore the buffers of a model, such as BatchNorm statistics, after a ``with`` block."""
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(kept[name])


def _recorded_bytes(run: TeacherPass) -> int:
    """Bytes of the recorded outputs of a teacher; views of one tensor count once, with its full storage."""
    found = [each for source in run.sources for each in tensors_of(run.recorder_of(source)[source])]
    storages = {
        each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in found
    }
    return sum(storages.values())


def _bytes(model: Detector) -> int:
    tensors = (*model.parameters(), *model.buffers())
    return sum(
        tensor.nbytes for tensor in tensors if not tensor.is_meta
    )  # cached teachers have meta tensors


def _seconds(device: torch.device, run: Callable[[], Any]) -> float:
    wait = torch.cuda.synchronize if device.type == 'cuda' else lambda: None
    wait()
    start = time.perf_counter()
    run()
    wait()  # calls on a GPU return before they have finished
    return time.perf_counter() - start


def _peak_bytes(device: torch.device, run: Callable[[], Any]) -> int:
    """The maximum increase of tensor memory while a function runs.

    On the CPU, torch does not count it, but its profiler reports each allocation and deallocation.
    """
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with TemporaryDirectory() as folder:
        trace = Path(folder) / 'trace.json'
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding='utf-8'))['traceEvents']
    changes = [(event['ts'], event['args']) for event in events if event['name'] == '[memory]']
    changes = [(at, what['Bytes']) for at, what in changes if what['Device Type'] == 0]
    held = np.cumsum([size for _, size in sorted(changes)])
    return max(int(held.max(initial=0)), 0)
