"""Suggest losses for a pair of detectors; each is run once before it is suggested."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any

import torch
from mmdet.registry import MODELS

from ..building import without_pretrained
from ..distillers import LossEntry
from ..errors import UserError
from ..families import SingleStage, Transformer, TwoStage, family_of
from ..families.class_scores import uses_softmax
from ..families.dense_heads import CENTERNESS, IOU, OBJECTNESS, dense_head
from ..families.two_stage import is_cascade
from ..random_state import preserve_rng_state
from ..types import Detector
from .inspection import Inspection, Match, match, random_batch

Entry = dict[str, Any]
# Size of the random images for trial steps; a multiple of all strides.
TRIAL_SIZE = (256, 256)
HINTON = 'tau: Hinton et al. 2015 (arXiv 1503.02531), sec. 3'


@dataclass(frozen=True)
class Candidate:
    """A loss that may work for a pair.

    Attributes:
        name: Key in ``losses``.
        entry: Config of the loss.
        why: The compared outputs, and the source of the numbers in the config.
        group: Only the first loss of a group that works is suggested.
    """

    name: str
    entry: Entry
    why: str
    group: str


@dataclass
class Suggestion:
    """The losses that work for a pair.

    Attributes:
        losses: Configs by name.
        why: For each loss, the compared outputs and the source of its numbers.
        refused: For each group without a loss that works, the error of a loss that suits the detectors, or
            else of its first.
    """

    losses: dict[str, Entry] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """Two inspected detectors.

    Attributes:
        student, teacher: Outputs of their modules.
        model_configs: The ``model`` configs of student and teacher.
        classes: The class names of student and teacher, None if unknown.
        class_map: See :class:`mmkd.distillers.Distiller`.
    """

    student: Inspection
    teacher: Inspection
    model_configs: tuple[dict[str, Any], dict[str, Any]]
    classes: tuple[Sequence[str] | None, Sequence[str] | None]
    class_map: dict[str, Any] | None = None


def suggest(pair: Pair) -> Suggestion:
    """Run candidate losses on random images and weights, and return those that work."""
    found = Suggestion()
    student, teacher = pair.student.model, pair.teacher.model
    if not any(it.covers(student) and it.covers(teacher) for it in CANDIDATES_BY_FAMILY):
        kinds = f'{type(student).__name__} and {type(teacher).__name__}'
        found.refused['heads'] = (
            f'{kinds} have different types of heads, so only features can be compared'
        )
    options = dict(family_of(teacher).options, scale=1.0)
    done: set[str] = set()
    for candidate in candidates(pair):
        group, name = candidate.group, candidate.name
        if group in done:
            continue
        refusal = _static_problem(candidate, pair, options)
        problem = refusal or _trial_problem(pair, {name: candidate.entry})
        if problem is None:
            done.add(group)
            found.losses[name], found.why[name] = candidate.entry, candidate.why
            found.refused.pop(group, None)
        elif refusal is None:
            found.refused[group] = problem
        else:
            found.refused.setdefault(group, problem)
    return found


def _static_problem(candidate: Candidate, pair: Pair, options: dict[str, Any]) -> str | None:
    """The error of a loss that can be found without running the detectors, None if there is none."""
    try:
        entry = LossEntry(candidate.name, deepcopy(candidate.entry))
        entry.check(pair.student.model, pair.teacher.model, options)
    except UserError as error:
        return str(error)
    return None


def _trial_problem(pair: Pair, losses: dict[str, Entry]) -> str | None:
    """Run one training step with the losses; returns the error message, None if it works."""
    count = family_of(pair.student.model).num_classes() or 1
    named, other = pair.classes
    ours: tuple[str, ...] = tuple(named or [f'class {index}' for index in range(count)])
    with TemporaryDirectory() as folder:
        checkpoint = os.path.join(folder, 'teacher.pth')
        torch.save(dict(state_dict=pair.teacher.model.state_dict(), meta={}), checkpoint)
        teacher: dict[str, Any] = dict(
            config=dict(model=pair.model_configs[1]),
            checkpoint=checkpoint,
            classes=other or (ours if _counts_agree(pair) else None),
        )
        try:
            distiller = MODELS.build(
                dict(
                    type='Distiller',
                    student=without_pretrained(pair.model_configs[0]),
                    teacher=teacher,
                    losses=deepcopy(losses),
                    classes=ours,
                    class_map=deepcopy(pair.class_map),
                )
            )
            with preserve_rng_state():
                distiller.init_weights()
            distiller.prepare()
            distiller.train()
            data = random_batch(distiller, TRIAL_SIZE, images=2, classes=count)
            distiller(data['inputs'], data['data_samples'], mode='loss')
        except UserError as error:
            return str(error)
    return None


def _counts_agree(pair: Pair) -> bool:
    counts = {family_of(each.model).num_classes() for each in (pair.student, pair.teacher)}
    return len(counts) == 1


# ---------------------------------------------------------------------- candidates


def candidates(pair: Pair) -> Iterator[Candidate]:
    """The candidate losses for a pair, by the families of its detectors, most established first."""
    student, teacher = pair.student.model, pair.teacher.model
    for family, offered in CANDIDATES_BY_FAMILY.items():
        if family.covers(student) and family.covers(teacher):
            yield from offered(student, teacher)
            break
    yield from _feature_candidates(pair)
    yield from _memory_candidates(pair)


def _two_stage_candidates(student: Detector, teacher: Detector) -> Iterator[Candidate]:
    # With a cascade, the alignments select the first stage.
    explicit = not (is_cascade(student) or is_cascade(teacher))
    scores, boxes = (
        dict.fromkeys(('student', 'teacher'), f'roi_head.bbox_head.{layer}') if explicit else {}
        for layer in ('fc_cls', 'fc_reg')
    )
    yield Candidate(
        'loss_kd_cls',
        dict(
            type='KLDivergence',
            tau=2.5,
            loss_weight=1.0,
            **scores,
            align=dict(type='RoIClassAlignment'),
        ),
        f'Class scores of the same proposals. {HINTON}; loss_weight: same as the task loss.',
        'class scores',
    )
    yield Candidate(
        'loss_kd_bbox',
        dict(
            type='MSE',
            loss_weight=1.0,
            **boxes,
            align=dict(type='RoIBoxAlignment', select='labels'),
        ),
        'Box deltas of foreground proposals. loss_weight: same as the task loss.',
        'boxes',
    )


def _dense_candidates(student: Detector, teacher: Detector) -> Iterator[Candidate]:
    try:
        quality = dense_head(teacher.bbox_head).quality
        softmax = uses_softmax(teacher.bbox_head)
    except UserError:
        return
    head = dict(student='bbox_head', teacher='bbox_head')
    # The objectness of most priors is near 0; the sum of the teacher's confidences estimates the number of
    # objects.
    normalizer = dict(normalizer='confidence') if quality == OBJECTNESS else {}
    yield Candidate(
        'loss_kd_cls',
        dict(
            **(dict(type='KLDivergence', tau=2.5) if softmax else dict(type='SoftLabelBCE')),
            loss_weight=1.0,
            **head,
            align=dict(type='DenseClassAlignment', **normalizer),
        ),
        f'Class scores of the same priors. {f"{HINTON}; " if softmax else ""}loss_weight: same as the task '
        f'loss.',
        'class scores',
    )
    yield Candidate(
        'loss_kd_distribution',
        dict(
            type='KLDivergence',
            tau=1.0,
            loss_weight=0.25,
            **head,
            align=dict(type='DenseDistributionAlignment'),
        ),
        'Box-edge distributions. tau: CrossKD (arXiv 2306.11369); loss_weight: LD (arXiv 2102.12252).',
        'boxes',
    )
    yield Candidate(
        'loss_kd_bbox',
        dict(
            type='GIoU',
            loss_weight=2.0,
            **head,
            align=dict(type='DenseBoxAlignment', **normalizer),
        ),
        'Decoded boxes. loss_weight: same as the box loss of GFL and ATSS.',
        'boxes',
    )
    for kind, align in (
        (OBJECTNESS, 'DenseObjectnessAlignment'),
        (CENTERNESS, 'DenseCenternessAlignment'),
        (IOU, 'DenseCenternessAlignment'),
    ):
        if quality == kind:
            yield Candidate(
                f'loss_kd_{kind}',
                dict(
                    type='SoftLabelBCE',
                    loss_weight=1.0,
                    **head,
                    align=dict(type=align, **normalizer),
                ),
                f'The {kind} of the same priors. loss_weight: same as the task loss.',
                'quality',
            )


def _query_candidates(student: Detector, teacher: Detector) -> Iterator[Candidate]:
    head = dict(student='bbox_head', teacher='bbox_head')
    softmax = uses_softmax(teacher.bbox_head)
    match_queries = dict(type='HungarianQueryAlignment')
    layers = len(getattr(teacher.decoder, 'layers', ())) or 6
    # DETR sums its losses over the layers; these losses are means over the layers.
    source = f'loss_weight: same as the task loss of DETR, times {layers} for the mean over layers'
    yield Candidate(
        'loss_kd_cls',
        dict(
            **(dict(type='KLDivergence', tau=2.0) if softmax else dict(type='SoftLabelBCE')),
            loss_weight=1.0 * layers,
            **head,
            align=dict(match_queries, of='class'),
        ),
        f'Class scores of matched queries. {f"{HINTON}; " if softmax else ""}{source}.',
        'class scores',
    )
    yield Candidate(
        'loss_kd_bbox',
        # DETR has 5 for the sum of four coordinates; this loss is their mean.
        dict(type='L1', loss_weight=20.0 * layers, **head, align=dict(match_queries, of='box')),
        f'Boxes of matched queries. {source}, times 4 for the mean over coordinates.',
        'boxes',
    )
    yield Candidate(
        'loss_kd_iou',
        dict(
            type='GIoU',
            loss_weight=2.0 * layers,
            **head,
            align=dict(match_queries, of='box', box_format='xyxy'),
        ),
        f'GIoU of these boxes. {source}.',
        'overlap',
    )


def _feature_candidates(pair: Pair) -> Iterator[Candidate]:
    """Neck or backbone maps of the same size; PKD ignores magnitudes, which differ between detectors."""
    for ours, theirs in (
        ('neck', 'neck'),
        ('neck', 'backbone'),
        ('backbone', 'neck'),
        ('backbone', 'backbone'),
    ):
        one, other = pair.student[ours], pair.teacher[theirs]
        if one is None or other is None or not one.maps or not other.maps:
            continue
        found: Match = match(one, other)
        entry = dict(
            type='PKD', loss_weight=6.0 * max(1, found.levels), student=ours, teacher=theirs
        )
        if found.connector:
            entry['connector'] = found.connector
        yield Candidate(
            f'loss_kd_{ours}',
            entry,
            f'{_maps_of(found)}. loss_weight: PKD (arXiv 2207.02039), 6 per level.',
            'feature maps',
        )


def _maps_of(found: Match) -> str:
    of_both = (
        found.student if found.student == found.teacher else f'{found.student} and {found.teacher}'
    )
    return f'Feature maps of the {of_both}, {found.levels} levels of the same size'


def _memory_candidates(pair: Pair) -> Iterator[Candidate]:
    """The encoder of a transformer, compared with the encoder or the neck of the other detector."""
    student, teacher = pair.student.model, pair.teacher.model
    ours, theirs = (Transformer.covers(model) for model in (student, teacher))
    if not (ours or theirs):
        return
    paths = ['encoder' if each else 'neck' for each in (ours, theirs)]
    widths = [
        _width(each, path) for each, path in zip((pair.student, pair.teacher), paths, strict=True)
    ]
    if None in widths:
        return
    entry: Entry = dict(
        type='MSE',
        loss_weight=1.0,
        student=paths[0],
        teacher=paths[1],
        align=dict(type='EncoderMemoryAlignment'),
    )
    if widths[0] != widths[1]:
        kind = 'LinearConnector' if ours else 'ConvConnector'
        entry['connector'] = dict(type=kind, in_channels=widths[0], out_channels=widths[1])
    yield Candidate(
        'loss_kd_memory',
        entry,
        'Encoder outputs per position. loss_weight: not tuned.',
        'encoder',
    )


def _width(inspection: Inspection, path: str) -> int | None:
    """The number of channels of an output; None if levels differ, or if the module does not exist."""
    found = inspection[path]
    if found is None or not found.shapes:
        return None
    maps = found.maps
    widths = {shape[1] for shape in maps} if maps else {shape[-1] for shape in found.shapes[:1]}
    return widths.pop() if len(widths) == 1 else None


CANDIDATES_BY_FAMILY: dict[Any, Callable[[Detector, Detector], Iterator[Candidate]]] = {
    TwoStage: _two_stage_candidates,
    Transformer: _query_candidates,
    SingleStage: _dense_candidates,
}


# ---------------------------------------------------------------------- config text


def as_config(suggestion: Suggestion) -> str:
    """The losses as Python code for a config, with a comment for each."""
    lines = ['losses = dict(']
    for name, entry in suggestion.losses.items():
        lines += [f'    # {suggestion.why[name]}', f'    {name}={_as_python(entry, 1)},']
    return '\n'.join([*lines, ')'])


def _as_python(value: Any, depth: int) -> str:
    if not isinstance(value, dict):
        return repr(value)
    items = [f'{key}={_as_python(each, depth + 1)}' for key, each in value.items()]
    line = f'dict({", ".join(items)})'
    if depth > 1 and len(line) < 80:
        return line
    indent = '    ' * (depth + 1)
    return '\n'.join(['dict(', *(f'{indent}{item},' for item in items), '    ' * depth + ')'])
