"""Whether the pipelines of the data sets give a detector what it trains on, and a metric what it reads."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmcv.transforms import BaseTransform
from mmdet.evaluation import CocoMetric
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.registry import METRICS
from mmdet.structures import DetDataSample
from mmengine.model import BaseDataPreprocessor

from ..errors import ConfigError, UserError
from ..random_state import preserve_rng_state
from .advice import Advice
from .annotations import AnnotatedData, words_of
from .planned_run import PlannedRun

PACK = "end the pipeline with dict(type='PackDetInputs')"
LOAD = "add dict(type='LoadAnnotations', with_bbox=True) after LoadImageFromFile"
# Detectors with one of these learn from boxes with labels; others may learn from masks alone.
HEADS = ('bbox_head', 'rpn_head')
# Images are taken through a pipeline as often; a transform that is applied at random fails in one of them.
SAMPLES = 8
# Images that a preprocessor has still to normalize have values up to 255, and its `std` is of that size.
NORMALIZED = 10.0


def check_pipelines(run: PlannedRun) -> Iterator[UserError | Advice]:
    """The pipelines run, and give what the detector and the metrics read."""
    lacking = set()
    for data in run.data:
        for fault in _without_outlines(data):
            lacking.add(data.mode)
            yield fault
    for mode in run.modes:
        dataset, key = run.dataset(mode), f'{mode}_dataloader.dataset'
        if mode in lacking or dataset is None or not len(dataset):
            continue
        try:
            with preserve_rng_state(), _copied_pipelines(dataset):
                samples = [dataset[len(dataset) * i // SAMPLES] for i in range(SAMPLES)]
        except UserError as error:
            yield error
        except Exception as error:  # whatever a transform raises
            transform = _transform_in(error)
            name = type(transform).__name__ if transform else 'a transform'
            hint = 'look at its options, and at what stands before it'
            if hasattr(transform, 'get_indexes') and not hasattr(dataset, 'pipeline_types'):
                hint = (
                    'it mixes several images; write it in the pipeline of a MultiImageMixDataset around the '
                    'data set'
                )
            yield ConfigError(f'{key}.pipeline: {name} fails: {words_of(error)}; {hint}')
        else:
            yield from _incomplete(run, mode, key, samples[0])


@contextmanager
def _copied_pipelines(dataset: Any) -> Iterator[None]:
    """Let transforms that keep images, as CachedMosaic does, keep none for the run."""
    owners = [each for each in _nested(dataset) if hasattr(each, 'pipeline')]
    before = [each.pipeline for each in owners]
    for each in owners:
        each.pipeline = copy.deepcopy(each.pipeline)
    try:
        yield
    finally:
        for each, pipeline in zip(owners, before, strict=True):
            each.pipeline = pipeline


def _nested(dataset: Any) -> Iterator[Any]:
    """A data set and those that it wraps."""
    yield dataset
    for each in getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]:
        if each is not None:
            yield from _nested(each)


def _without_outlines(data: AnnotatedData) -> Iterator[UserError]:
    """An object without an outline stops a run that loads masks when its turn comes."""
    steps = data.config.get('pipeline') or ()
    if not any(step.get('with_mask') for step in steps if isinstance(step, dict)):
        return
    objects = [each for image in data.kept for each in image.get('instances', ())]
    lacking = [each for each in objects if 'mask' not in each]
    if lacking:
        yield ConfigError(
            f'{data.key}.pipeline: with_mask=True, but {len(lacking)} of {len(objects)} objects of '
            f'{data.path} have no outline (segmentation); add them, or take these objects out'
        )


def _incomplete(run: PlannedRun, mode: str, key: str, sample: Any) -> Iterator[UserError | Advice]:
    """What a sample lacks; of detectors and preprocessors that are not mmdet's too little is known."""
    if not run.detector_config:
        return
    model = run.detector
    if type(model.data_preprocessor) is BaseDataPreprocessor and _is_of_mmdet(model):
        yield ConfigError(
            f'{run.detector_key}.data_preprocessor: must be given, got None; write '
            f"dict(type='DetDataPreprocessor', …) with mean and std of the pretrained weights"
        )
    if not isinstance(model.data_preprocessor, DetDataPreprocessor):
        return
    absent = [name for name in ('inputs', 'data_samples') if name not in (sample or ())]
    if absent:
        found = ', '.join(map(str, sample)) if isinstance(sample, dict) else type(sample).__name__
        yield ConfigError(f'{key}.pipeline: must give {absent[0]}, got {found}; {PACK}')
        return
    image, labels = sample['inputs'], sample['data_samples']
    if not isinstance(image, torch.Tensor) or not isinstance(labels, DetDataSample):
        return  # of several branches, or tracks
    if _is_normalized(image, model.data_preprocessor):
        yield Advice(
            f'{key}.pipeline: gives images that are normalized, and {run.detector_key}.data_preprocessor '
            f'normalizes them again; take Normalize out of the pipeline'
        )
    if _is_of_small_values(image, model.data_preprocessor):
        yield Advice(
            f'{run.detector_key}.data_preprocessor: mean and std are of images from 0 to 1, and those of '
            f'{key} go to {float(image.max()):.0f}; multiply both by 255'
        )
    if not _is_of_mmdet(model) or not any(hasattr(model, name) for name in HEADS):
        return
    if mode == 'train' and run.needs_labels:
        objects = labels.get('gt_instances', ())
        if 'bboxes' not in objects or 'labels' not in objects:
            yield ConfigError(f'{key}.pipeline: must give boxes and labels, got none; {LOAD}')
        elif _with_mask(model) and 'masks' not in objects:
            yield ConfigError(
                f'{key}.pipeline: must give masks to {run.detector_key}.roi_head.mask_head, got none; write '
                f'with_mask=True in LoadAnnotations'
            )
    elif mode != 'train':
        yield from _unevaluable(run, mode, key, labels)


def _unevaluable(
    run: PlannedRun, mode: str, key: str, sample: DetDataSample
) -> Iterator[UserError]:
    """What would stop the first evaluation, an epoch later."""
    evaluator = run.cfg.get(f'{mode}_evaluator') or ()
    needed = {'scale_factor': f'{run.detector_key}'}
    for metric in evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]:
        kind = METRICS.get(metric.get('type')) if isinstance(metric.get('type'), str) else None
        if not isinstance(kind, type) or not issubclass(kind, CocoMetric):
            continue
        names = metric.get('metric', 'bbox')
        of_masks = 'segm' in ([names] if isinstance(names, str) else names)
        if of_masks and hasattr(run.detector, 'roi_head') and not _with_mask(run.detector):
            yield ConfigError(
                f"{mode}_evaluator.metric: 'segm' needs a detector of masks, got "
                f"{type(run.detector).__name__}; write 'bbox'"
            )
        needed |= dict.fromkeys(('img_id', 'ori_shape'), kind.__name__)
        if not metric.get('ann_file') and 'instances' not in sample:
            hint = f'name the annotation file of {mode}_dataloader'
            if any(data.mode == mode and data.coco is None for data in run.data):
                hint = (
                    f"or add 'instances' to meta_keys of PackDetInputs in {key}.pipeline, as its annotations "
                    f"are not in COCO's form"
                )
            yield ConfigError(
                f'{mode}_evaluator.ann_file: must be given to {kind.__name__}, got None; {hint}'
            )
    for name, reader in needed.items():
        if name not in sample:
            yield ConfigError(
                f'{key}.pipeline: must give {name}, which {reader} reads, got '
                f'{", ".join(sorted(sample.metainfo_keys()))}; add it to meta_keys of PackDetInputs'
                f'{", and Resize before it" if name == "scale_factor" else ""}'
            )


def _with_mask(model: Any) -> bool:
    return bool(getattr(getattr(model, 'roi_head', None), 'with_mask', False))


def _is_of_mmdet(model: Any) -> bool:
    return type(model).__module__.startswith('mmdet.')


def _is_of_small_values(image: torch.Tensor, preprocessor: Any) -> bool:
    """Whether a preprocessor normalizes images from 0 to 1, as torchvision does, and this is another."""
    normalizes = getattr(preprocessor, '_enable_normalize', False)
    return bool(normalizes) and 1 > float(preprocessor.std.max()) and float(image.max()) > 2


def _is_normalized(image: torch.Tensor, preprocessor: Any) -> bool:
    """Whether an image has been normalized before a preprocessor does it, told by its values."""
    normalizes = getattr(preprocessor, '_enable_normalize', False)
    return (
        bool(normalizes)
        and image.is_floating_point()
        and float(image.abs().max()) < NORMALIZED < float(preprocessor.std.max())
    )


def _transform_in(error: BaseException) -> BaseTransform | None:
    """The transform whose code raised it; that of a pipeline, not one that another calls."""
    frames = traceback.walk_tb(error.__traceback__)
    owners = (frame.f_locals.get('self') for frame, _ in frames)
    return next((each for each in owners if isinstance(each, BaseTransform)), None)
