"""What is wrong with a distillation before it is trained, from a few real batches."""

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

# Of a gradient beside that of the task losses; tuned weights of the studies lie at 0.04 to 2.5.
WEAKEST, STRONGEST = 0.01, 10.0
# What a weight is set to by advice: GradientRatio's default.
ADVISED = 1.0
OPPOSED = -0.3
# AP50 below which a teacher has nothing to teach.
NOTHING = 0.05
# Of a paired one-sided t-test over objects, and Cohen's kappa from which on classes agree at all ("fair" in
# Landis and Koch 1977).
SIGNIFICANT, AGREES = 0.01, 0.2


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Attributes:
        key: The config key it concerns.
        what: What was measured.
        todo: What to change.
    """

    key: str
    what: str
    todo: str

    def __str__(self) -> str:
        return f'{self.key}: {self.what}; {self.todo}'


@dataclass
class Diagnosis:
    """What was measured, and what is wrong.

    Attributes:
        images: Number of validation images.
        scores: Of each teacher, and of the student if it has weights.
        preprocessing: Settings of each, by name.
        classes: Of each teacher, the student's class names with the teacher's.
        gradients: Of each loss.
        cost: Of a step.
        notes: What was not measured, and why.
        findings: What is wrong.
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
    """Look at a distillation.

    Args:
        distiller: As a training run starts it.
        batches: Of the training data.
        validation: Data with labels that teachers are tested on, or None.
        images: How many of them.
        is_trained: Whether the student has weights that are worth a test.
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
        found.notes.append('no val_dataloader: the teacher was not tested')
    else:
        score_models(distiller, sample, is_trained, found)
    found.gradients = measure_gradients(distiller, batches)
    found.findings += of_gradients(distiller, found.gradients)
    found.cost = measure(distiller, batches, iterations=2, warmup=1)
    return found


# ---------------------------------------------------------------------- teachers and student, tested


def score_models(distiller: Distiller, sample: Sample, is_trained: bool, found: Diagnosis) -> None:
    """Test the teachers, and the student, and note what is wrong with them.

    Args:
        distiller: The teachers are loaded.
        sample: What to test on.
        is_trained: Whether the student has weights that are worth a test.
        found: Where scores, notes and findings go; the preprocessing is in it.
    """
    for name, teacher in distiller.teachers.items():
        key = distiller.teachers.config_key(name)
        if isinstance(teacher, AveragedTeacher):
            found.notes.append(f'{key}: not tested, it is the average of the student')
        elif not isinstance(teacher, LiveTeacher):
            found.notes.append(
                f'{key}: not tested, its cache has no weights; set {key}.config and .checkpoint beside it'
            )
        else:
            found.findings += _test_teacher(distiller, key, teacher, sample, found)
    if not is_trained:
        found.notes.append(
            'student: not tested, it has no weights yet; give some with --checkpoint'
        )
        return
    student = distiller.student.eval()
    try:
        given, swapped = _as_is_and_swapped(student, sample)
    finally:
        distiller.train(distiller.training)
    score = found.scores['student'] = sample.score(given)
    found.findings += _of_channels('student', sample, given, swapped, found)
    for name in distiller.teachers:
        key = distiller.teachers.config_key(name)
        if key in found.scores and found.scores[key].map < score.map:
            found.findings.append(
                Finding(
                    key,
                    f'its mAP of {_percent(found.scores[key].map)} is below the {_percent(score.map)} of the '
                    f'student, on {len(sample)} validation images',
                    'take a better teacher, or test on more images with --images',
                )
            )


def _test_teacher(
    distiller: Distiller, key: str, teacher: LiveTeacher, sample: Sample, found: Diagnosis
) -> Iterator[Finding]:
    given, swapped = _as_is_and_swapped(teacher, sample)
    labels = _labels(distiller, teacher, sample, key, found)
    if labels is None:
        found.notes.append(f'{key}: tested without classes, which have no names in common')
        sample = sample.without_classes()
        labels = [0] * (teacher.family.num_classes() or len(teacher.classes or ()))
    score = found.scores[key] = sample.score(relabelled(given, labels))
    wrong = [
        *_of_channels(key, sample, relabelled(given, labels), relabelled(swapped, labels), found),
        *_of_classes(key, sample, given, labels, teacher.classes or (), score),
    ]
    yield from wrong
    if score.ap50 < NOTHING and not wrong:
        yield Finding(
            f'{key}.checkpoint',
            f'AP50 is {_percent(score.ap50)} on {len(sample)} validation images: it finds next to nothing',
            'take weights that were trained with its config and on such images',
        )


def _labels(
    distiller: Distiller, teacher: LiveTeacher, sample: Sample, key: str, found: Diagnosis
) -> list[int] | None:
    """The student's label of each class of a teacher, -1 where it has none."""
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
    """What is found in the images, and in the images with red and blue exchanged."""
    with preserve_rng_state():
        return tuple(  # type: ignore[return-value]
            sample.run(lambda batch: _predict(detector, batch), swapped=swap)
            for swap in (False, True)
        )


def _of_channels(
    key: str,
    sample: Sample,
    given: Sequence[InstanceData],
    swapped: Sequence[InstanceData],
    found: Diagnosis,
) -> Iterator[Finding]:
    score, other = sample.score(given), sample.score(swapped)
    if other.ap50 > NOTHING and _is_better(sample, swapped, given):
        yield Finding(
            key if key == 'student' else f'{key}.config',
            f'it scores objects higher with red and blue exchanged (AP50 {_percent(other.ap50)} instead of '
            f'{_percent(score.ap50)} on {len(sample)} validation images)',
            f'its data_preprocessor has {found.preprocessing[key]["channels"]}: change that, or let mean and '
            f'std be those that its weights were trained with',
        )


def _of_classes(
    key: str,
    sample: Sample,
    given: Sequence[InstanceData],
    labels: list[int],
    names: Sequence[str],
    score: Score,
) -> Iterator[Finding]:
    """Whether a teacher's classes are others than their names say, by the objects its detections lie on."""
    known = [theirs for theirs, label in enumerate(labels) if label >= 0]
    seen = sample.matches(given, len(labels))[known]
    if len(sample.classes) < 2 or not seen.sum():
        return
    rows, columns = linear_sum_assignment(seen, maximize=True)
    fitting = list(labels)
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        if seen[row, column] > 0:
            fitting[known[row]] = column
    moved = [theirs for theirs in known if fitting[theirs] != labels[theirs]]
    if not moved or _kappa(seen[rows][:, columns]) < AGREES:
        return
    better = relabelled(given, fitting)
    if _is_better(sample, better, relabelled(given, labels)):
        found = [f"its '{names[it]}' lies on '{sample.classes[fitting[it]]}'" for it in moved]
        yield Finding(
            f'{key}.classes',
            f'{", ".join(found)}; AP50 is {_percent(sample.score(better).ap50)} with these and '
            f'{_percent(score.ap50)} with its names, on {len(sample)} validation images',
            f'put {key}.classes in the order that its checkpoint was trained with',
        )


def _is_better(
    sample: Sample, other: Sequence[InstanceData], given: Sequence[InstanceData]
) -> bool:
    """Whether detections score the objects significantly higher than others of the same images."""
    first, second = sample.confidence(other), sample.confidence(given)
    if len(first) < 2 or torch.equal(first, second):
        return False
    return bool(ttest_rel(first, second, alternative='greater').pvalue < SIGNIFICANT)


def _kappa(counts: Tensor) -> float:
    """Cohen's kappa of a square table: agreement beyond what rows and columns share by chance."""
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
    """What a preprocessor does to an image."""
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


def of_gradients(distiller: Distiller, gradients: dict[str, LossGradient]) -> Iterator[Finding]:
    """What is wrong with the sizes and directions of gradients."""
    if TASK not in gradients:
        return
    for name, entry in distiller.entries.items():
        found, key = gradients[name], f'losses.{name}'
        advice = (
            f"set it to {entry.loss_weight * ADVISED / max(found.ratio, 1e-9):.2g}, or to 'auto'"
        )
        if not any(found.norms.values()):
            yield Finding(
                key,
                'has no gradient at any weight of the student',
                'look whether it finds something to compare (class map, alignment), or leave it out',
            )
        elif math.isnan(found.ratio):
            continue
        elif found.ratio > STRONGEST:
            yield Finding(
                f'{key}.loss_weight',
                f'its gradient is {found.ratio:.3g} times that of the task losses',
                advice,
            )
        elif found.ratio < WEAKEST:
            yield Finding(
                f'{key}.loss_weight',
                f'its gradient is only {found.ratio:.2g} times that of the task losses',
                advice,
            )
        if found.cosine < OPPOSED:
            yield Finding(
                key,
                f'works against the task losses (cosine {found.cosine:.2f})',
                'look at the class map and at what is said of the teacher, or lower its loss_weight',
            )


def _percent(value: float) -> str:
    return f'{100 * value:.1f}'
