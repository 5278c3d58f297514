"""Find faults of a distillation before training, from a few real batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.dataset import BaseDataset
from mmengine.device import get_device
from mmengine.model import BaseDataPreprocessor
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from scipy.stats import ttest_rel
from torch import Tensor

from ..alignments.padding import size_divisor
from ..distillers import Distiller
from ..errors import UserError
from ..random_state import preserve_rng_state
from ..teachers.averaged import AveragedTeacher
from ..teachers.live import LiveTeacher
from ..types import Detector
from .detections import Sample, Score, relabelled
from .gradients import TASK, LossGradient, measure_gradients
from .training_cost import TrainingCost, measure

# Ratio of a loss's gradient to that of the task losses; tuned weights of the studies have 0.04 to 2.5.
MIN_RATIO, MAX_RATIO = 0.01, 10.0
# Ratio that a suggested weight results in: the default of GradientRatio.
TARGET_RATIO = 1.0
# Minimum cosine between the gradients of a loss and of the task losses.
MIN_COSINE = -0.3
# Minimum AP50 of a useful teacher.
MIN_AP50 = 0.05
# Maximum p-value of a paired one-sided t-test over objects, and minimum Cohen's kappa of classes that agree
# ("fair" in Landis and Koch 1977).
MAX_P_VALUE, MIN_KAPPA = 0.01, 0.2


@dataclass(frozen=True)
class Finding:
    """A fault that was found.

    Attributes:
        key: The config key of the fault.
        what: The measurement.
        todo: The change to make.
    """

    key: str
    what: str
    todo: str

    def __str__(self) -> str:
        return f'{self.key}: {self.what}; {self.todo}'


@dataclass
class Diagnosis:
    """Measurements and faults of a distillation.

    Attributes:
        images: Number of validation images.
        scores: Scores of each teacher, and of the student if it has weights, by name.
        preprocessing: Preprocessing settings of each teacher and of the student, by name.
        classes: For each teacher, the student's class names and the matching names of the teacher.
        gradients: Gradient of each loss.
        cost: Cost of a training step.
        notes: Measurements that were left out, with the reason.
        findings: The faults.
    """

    images: int = 0
    scores: dict[str, Score] = field(default_factory=dict)
    preprocessing: dict[str, dict[str, Any]] = field(default_factory=dict)
    classes: dict[str, dict[str, str]] = field(default_factory=dict)
    gradients: dict[str, LossGradient] = field(default_factory=dict)
    cost: TrainingCost | None = None
    notes: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def diagnose(
    distiller: Distiller,
    batches: Sequence[dict[str, Any]],
    validation: BaseDataset | None,
    images: int,
    is_trained: bool = False,
) -> Diagnosis:
    """Measure a distillation and find its faults.

    Args:
        distiller: The distiller with the weights that a training run starts with.
        batches: Batches of the training data.
        validation: Data set with labels for testing the teachers, or None.
        images: Number of its images to use.
        is_trained: Whether the student has trained weights, so it is tested too.
    """
    found = Diagnosis()
    sample = Sample.of(validation, images) if validation is not None else None
    found.images = len(sample) if sample else 0
    models = {'student': distiller.student} | {
        distiller.teachers.config_key(name): it.detector for name, it in distiller.teachers.items()
    }
    found.preprocessing = {
        name: _settings(model.data_preprocessor) for name, model in models.items()
    }
    if sample is None:
        found.notes.append('teacher: not tested, as the config has no val_dataloader')
    else:
        score_models(distiller, sample, is_trained, found)
    found.gradients = measure_gradients(distiller, batches)
    found.findings += check_gradients(distiller, found.gradients)
    found.cost = measure(distiller, batches, iterations=2, warmup=1)
    return found


# ---------------------------------------------------------------------- tests of teachers and student


def score_models(distiller: Distiller, sample: Sample, is_trained: bool, found: Diagnosis) -> None:
    """Test the teachers and the student.

    Args:
        distiller: A distiller with loaded teachers.
        sample: The images to test on.
        is_trained: Whether the student has trained weights, so it is tested too.
        found: Gets scores, notes and findings; its preprocessing is already set.
    """
    for name, teacher in distiller.teachers.items():
        key = distiller.teachers.config_key(name)
        if isinstance(teacher, AveragedTeacher):
            found.notes.append(f'{key}: not tested, as it is the average of the student')
        elif not isinstance(teacher, LiveTeacher):
            found.notes.append(
                f'{key}: not tested, as a cache has no weights; set {key}.config and {key}.checkpoint too'
            )
        else:
            found.findings += _test_teacher(distiller, key, teacher, sample, found)
    if not is_trained:
        found.notes.append(
            'student: not tested, as it has no trained weights; name some with --checkpoint'
        )
        return
    student = distiller.student.eval()
    try:
        given, swapped = _as_is_and_swapped(student, sample)
    finally:
        distiller.train(distiller.training)
    score = found.scores['student'] = sample.score(given)
    found.findings += _check_channels('student', sample, given, swapped, found)
    for name in distiller.teachers:
        key = distiller.teachers.config_key(name)
        if key in found.scores and found.scores[key].map < score.map:
            found.findings.append(
                Finding(
                    key,
                    f'its mAP of {_percent(found.scores[key].map)} is below the {_percent(score.map)} of the '
                    f'student, on {len(sample)} validation images',
                    'use a better teacher, or test on more images with --images',
                )
            )


def _test_teacher(
    distiller: Distiller, key: str, teacher: LiveTeacher, sample: Sample, found: Diagnosis
) -> Iterator[Finding]:
    given, swapped = _as_is_and_swapped(teacher, sample)
    labels = _labels(distiller, teacher, sample, key, found)
    if labels is None:
        found.notes.append(
            f'{key}: tested without classes, as teacher and student share no class names'
        )
        sample = sample.without_classes()
        labels = [0] * (teacher.family.num_classes() or len(teacher.classes or ()))
    score = found.scores[key] = sample.score(relabelled(given, labels))
    wrong = [
        *_check_channels(
            key, sample, relabelled(given, labels), relabelled(swapped, labels), found
        ),
        *_check_classes(key, sample, given, labels, teacher.classes or (), score),
    ]
    yield from wrong
    if score.ap50 < MIN_AP50 and not wrong:
        yield Finding(
            f'{key}.checkpoint',
            f'AP50 is only {_percent(score.ap50)} on {len(sample)} validation images',
            'use weights that were trained with this config on similar images',
        )


def _labels(
    distiller: Distiller, teacher: LiveTeacher, sample: Sample, key: str, found: Diagnosis
) -> list[int] | None:
    """The student's label of each teacher class, -1 for unshared classes; None if no class is shared."""
    try:
        shared = teacher.shared_labels(sample.classes, distiller.class_map_config)
    except UserError:
        return None
    names = teacher.classes or ()
    found.classes[key] = {sample.classes[ours]: names[theirs] for theirs, ours in shared.items()}
    return [shared.get(theirs, -1) for theirs in range(len(names))] if shared else None


def _as_is_and_swapped(
    detector: LiveTeacher | Detector, sample: Sample
) -> tuple[list[InstanceData], list[InstanceData]]:
    """Detections in the images, and in the images with red and blue swapped."""
    with preserve_rng_state():
        return tuple(  # type: ignore[return-value]
            sample.run(lambda batch: _predict(detector, batch), swapped=swap)
            for swap in (False, True)
        )


def _check_channels(
    key: str,
    sample: Sample,
    given: Sequence[InstanceData],
    swapped: Sequence[InstanceData],
    found: Diagnosis,
) -> Iterator[Finding]:
    """Report a detector that is significantly better with red and blue swapped."""
    score, other = sample.score(given), sample.score(swapped)
    if other.ap50 > MIN_AP50 and _is_better(sample, swapped, given):
        yield Finding(
            key if key == 'student' else f'{key}.config',
            f'it scores objects higher with red and blue swapped (AP50 {_percent(other.ap50)} instead of '
            f'{_percent(score.ap50)} on {len(sample)} validation images)',
            f'its data_preprocessor has {found.preprocessing[key]["channels"]}: change that, or set mean and '
            f'std to the values of its training',
        )


def _check_classes(
    key: str,
    sample: Sample,
    given: Sequence[InstanceData],
    labels: list[int],
    names: Sequence[str],
    score: Score,
) -> Iterator[Finding]:
    """Report teacher classes whose detections are mostly on objects of another class."""
    known = [theirs for theirs, label in enumerate(labels) if label >= 0]
    seen = sample.label_scores(given, len(labels))[known]
    if len(sample.classes) < 2 or not seen.sum():
        return
    rows, columns = linear_sum_assignment(seen, maximize=True)
    fitting = list(labels)
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        if seen[row, column] > 0:
            fitting[known[row]] = column
    moved = [theirs for theirs in known if fitting[theirs] != labels[theirs]]
    if not moved or _kappa(seen[rows][:, columns]) < MIN_KAPPA:
        return
    better = relabelled(given, fitting)
    if _is_better(sample, better, relabelled(given, labels)):
        found = [f"its '{names[it]}' detects '{sample.classes[fitting[it]]}'" for it in moved]
        yield Finding(
            f'{key}.classes',
            f'{", ".join(found)}; AP50 is {_percent(sample.score(better).ap50)} with these classes and '
            f'{_percent(score.ap50)} with its names, on {len(sample)} validation images',
            f'write {key}.classes in the class order of its training',
        )


def _is_better(
    sample: Sample, other: Sequence[InstanceData], given: Sequence[InstanceData]
) -> bool:
    """Whether the first detections score the objects significantly higher than the second ones."""
    first, second = sample.confidence(other), sample.confidence(given)
    if len(first) < 2 or torch.equal(first, second):
        return False
    return bool(ttest_rel(first, second, alternative='greater').pvalue < MAX_P_VALUE)


def _kappa(counts: Tensor) -> float:
    """Cohen's kappa of a square table: agreement corrected for chance."""
    total = counts.sum()
    chance = float((counts.sum(0) * counts.sum(1)).sum() / total**2)
    return (float(counts.trace() / total) - chance) / max(1 - chance, 1e-9)


def _predict(detector: LiveTeacher | Detector, batch: dict[str, Any]) -> list[InstanceData]:
    if isinstance(detector, LiveTeacher):
        found = detector.predict(batch, get_device())
    else:
        with torch.no_grad():
            found = detector.test_step(batch)
    return [sample.pred_instances for sample in found]


def _settings(preprocessor: BaseDataPreprocessor) -> dict[str, Any]:
    """Settings of a preprocessor."""
    normalises = getattr(preprocessor, '_enable_normalize', False)
    swaps = bool(getattr(preprocessor, '_channel_conversion', False))
    return dict(
        channels='bgr_to_rgb=True' if swaps else 'bgr_to_rgb=False',
        mean=_numbers(preprocessor.mean) if normalises else None,
        std=_numbers(preprocessor.std) if normalises else None,
        pad_size_divisor=size_divisor(preprocessor),
    )


def _numbers(values: Tensor) -> list[float]:
    return [round(value, 3) for value in values.flatten().tolist()]


# ---------------------------------------------------------------------- losses


def check_gradients(distiller: Distiller, gradients: dict[str, LossGradient]) -> Iterator[Finding]:
    """Report losses with a zero, very small, very large or opposed gradient."""
    if TASK not in gradients:
        return
    for name, entry in distiller.entries.items():
        found, key = gradients[name], f'losses.{name}'
        advice = f"set it to {entry.loss_weight * TARGET_RATIO / max(found.ratio, 1e-9):.2g}, or to 'auto'"
        if not any(found.norms.values()):
            yield Finding(
                key,
                'has no gradient at any parameter of the student',
                'check that it has something to compare (class map, alignment), or remove it',
            )
        elif math.isnan(found.ratio):
            continue
        elif found.ratio > MAX_RATIO:
            yield Finding(
                f'{key}.loss_weight',
                f'its gradient is {found.ratio:.3g} times that of the task losses',
                advice,
            )
        elif found.ratio < MIN_RATIO:
            yield Finding(
                f'{key}.loss_weight',
                f'its gradient is only {found.ratio:.2g} times that of the task losses',
                advice,
            )
        if found.cosine < MIN_COSINE:
            yield Finding(
                key,
                f'its gradient opposes that of the task losses (cosine {found.cosine:.2f})',
                'check the class map and the findings on the teacher, or lower its loss_weight',
            )


def _percent(value: float) -> str:
    return f'{100 * value:.1f}'
