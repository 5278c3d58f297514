"""Check that the pipelines of the data sets return what the detector and the metrics read."""

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
from .annotations import AnnotatedData, describe_error
from .planned_run import PlannedRun

PACK = "end the pipeline with dict(type='PackDetInputs')"
LOAD = "add dict(type='LoadAnnotations', with_bbox=True) after LoadImageFromFile"
# Detectors with one of these heads train on boxes with labels; others may train on masks only.
BOX_HEADS = ('bbox_head', 'rpn_head')
# Number of images that are passed through a pipeline, so that randomly applied transforms run at least once.
SAMPLES = 8
# Normalized images have smaller absolute values; unnormalized ones and the `std` for them are larger.
MAX_NORMALIZED = 10.0


def check_pipelines(run: PlannedRun) -> Iterator[UserError | Advice]:
    """The pipelines run, and return what the detector and the metrics read."""
    lacking = set()
    for data in run.data:
        for fault in _check_segmentations(data):
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
        except Exception as error:  # transforms raise many kinds
            transform = _transform_in(error)
            name = type(transform).__name__ if transform else 'a transform'
            hint = 'check its options and the transforms before it'
            if hasattr(transform, 'get_indexes') and not hasattr(dataset, 'pipeline_types'):
                hint = (
                    'it mixes several images; move it to the pipeline of a MultiImageMixDataset around '
                    'the data set'
                )
            yield ConfigError(f'{key}.pipeline: {name} fails: {describe_error(error)}; {hint}')
        else:
            yield from _check_sample(run, mode, key, samples[0])


@contextmanager
def _copied_pipelines(dataset: Any) -> Iterator[None]:
    """Run on copies of the pipelines, so that CachedMosaic and the like keep no image of the check."""
    owners = [each for each in _with_inner_datasets(dataset) if hasattr(each, 'pipeline')]
    before = [each.pipeline for each in owners]
    for each in owners:
        each.pipeline = copy.deepcopy(each.pipeline)
    try:
        yield
    finally:
        for each, pipeline in zip(owners, before, strict=True):
            each.pipeline = pipeline


def _with_inner_datasets(dataset: Any) -> Iterator[Any]:
    """A data set and all data sets inside it."""
    yield dataset
    for each in getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]:
        if each is not None:
            yield from _with_inner_datasets(each)


def _check_segmentations(data: AnnotatedData) -> Iterator[UserError]:
    """Report objects without a segmentation; with masks, the run would stop when it loads one."""
    steps = data.config.get('pipeline') or ()
    if not any(step.get('with_mask') for step in steps if isinstance(step, dict)):
        return
    objects = [each for image in data.kept for each in image.get('instances', ())]
    lacking = [each for each in objects if 'mask' not in each]
    if lacking:
        yield ConfigError(
            f'{data.key}.pipeline: with_mask=True, but {len(lacking)} of {len(objects)} objects of '
            f'{data.path} have no segmentation; add it, or remove these objects'
        )


def _check_sample(
    run: PlannedRun, mode: str, key: str, sample: Any
) -> Iterator[UserError | Advice]:
    """Report missing parts of a sample; only for detectors and preprocessors of mmdet."""
    if not run.detector_config:
        return
    model = run.detector
    if type(model.data_preprocessor) is BaseDataPreprocessor and _is_of_mmdet(model):
        yield ConfigError(
            f'{run.detector_key}.data_preprocessor: must be a dict, got None; write '
            f"dict(type='DetDataPreprocessor', …) with mean and std of the pretrained weights"
        )
    if not isinstance(model.data_preprocessor, DetDataPreprocessor):
        return
    absent = [name for name in ('inputs', 'data_samples') if name not in (sample or ())]
    if absent:
        found = ', '.join(map(str, sample)) if isinstance(sample, dict) else type(sample).__name__
        yield ConfigError(f'{key}.pipeline: must return {absent[0]}, got {found}; {PACK}')
        return
    image, labels = sample['inputs'], sample['data_samples']
    if not isinstance(image, torch.Tensor) or not isinstance(labels, DetDataSample):
        return  # a multi-branch or tracking sample
    if _is_normalized(image, model.data_preprocessor):
        yield Advice(
            f'{key}.pipeline: returns normalized images, and {run.detector_key}.data_preprocessor '
            f'normalizes them again; remove Normalize from the pipeline'
        )
    if _expects_unit_range(image, model.data_preprocessor):
        yield Advice(
            f'{run.detector_key}.data_preprocessor: mean and std are for pixels from 0 to 1, but images of '
            f'{key} have values up to {float(image.max()):.0f}; multiply both by 255'
        )
    if not _is_of_mmdet(model) or not any(hasattr(model, name) for name in BOX_HEADS):
        return
    if mode == 'train' and run.needs_labels:
        objects = labels.get('gt_instances', ())
        if 'bboxes' not in objects or 'labels' not in objects:
            yield ConfigError(f'{key}.pipeline: must return boxes and labels, got none; {LOAD}')
        elif _with_mask(model) and 'masks' not in objects:
            yield ConfigError(
                f'{key}.pipeline: must return masks for {run.detector_key}.roi_head.mask_head, got none; '
                f'write with_mask=True in LoadAnnotations'
            )
    elif mode != 'train':
        yield from _check_metric_inputs(run, mode, key, labels)


def _check_metric_inputs(
    run: PlannedRun, mode: str, key: str, sample: DetDataSample
) -> Iterator[UserError]:
    """Report faults that would stop the first evaluation, one epoch later."""
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
                f"{mode}_evaluator.metric: 'segm' needs a detector that predicts masks, got "
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
                f'{mode}_evaluator.ann_file: must be a file for {kind.__name__}, got None; {hint}'
            )
    for name, reader in needed.items():
        if name not in sample:
            yield ConfigError(
                f'{key}.pipeline: must return {name}, which {reader} reads, got '
                f'{", ".join(sorted(sample.metainfo_keys()))}; add it to meta_keys of PackDetInputs'
                f'{", and add Resize before it" if name == "scale_factor" else ""}'
            )


def _with_mask(model: Any) -> bool:
    return bool(getattr(getattr(model, 'roi_head', None), 'with_mask', False))


def _is_of_mmdet(model: Any) -> bool:
    return type(model).__module__.startswith('mmdet.')


def _expects_unit_range(image: torch.Tensor, preprocessor: Any) -> bool:
    """Whether mean and std are for pixels from 0 to 1, as in torchvision, but the image has larger ones."""
    normalizes = getattr(preprocessor, '_enable_normalize', False)
    return bool(normalizes) and 1 > float(preprocessor.std.max()) and float(image.max()) > 2


def _is_normalized(image: torch.Tensor, preprocessor: Any) -> bool:
    """Whether an image is normalized already, judged by its values."""
    normalizes = getattr(preprocessor, '_enable_normalize', False)
    return (
        bool(normalizes)
        and image.is_floating_point()
        and float(image.abs().max()) < MAX_NORMALIZED < float(preprocessor.std.max())
    )


def _transform_in(error: BaseException) -> BaseTransform | None:
    """The transform of the pipeline that raised the error, not one that it calls."""
    frames = traceback.walk_tb(error.__traceback__)
    owners = (frame.f_locals.get('self') for frame, _ in frames)
    return next((each for each in owners if isinstance(each, BaseTransform)), None)
