"""The training pipelines that a cached teacher supports, and the pipeline that a cache is written with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from mmcv.transforms import BaseTransform, Compose
from mmcv.transforms.wrappers import KeyMapper, RandomApply, RandomChoice, TransformBroadcaster
from mmdet.datasets.transforms import ProposalBroadcaster
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose as PipelineCompose

from ..errors import ConfigError
from .views import HOMOGRAPHY, image_key

# The meta information that a sample must record.
META_KEYS = ('img_id', 'img_path', 'ori_shape', HOMOGRAPHY)
# Transforms that do not change the geometry of an image; that change it and record a homography, as mmdet's
# resizes, flips and crops do; that change only colours; and that a cache does not support.
KEEP_GEOMETRY = (
    *('LoadImageFromFile', 'LoadAnnotations', 'LoadEmptyAnnotations', 'LoadProposals'),
    *(
        'FilterAnnotations',
        'PackDetInputs',
        'Pad',
        'ImageToTensor',
        'ToTensor',
        'WrapFieldsToLists',
    ),
    *('LoadImageFromNDArray', 'LoadMultiChannelImageFromFiles'),
)
RECORD_GEOMETRY = (
    *('Resize', 'FixScaleResize', 'FixShapeResize', 'RandomResize', 'RandomChoiceResize'),
    *('RandomFlip', 'RandomCrop', 'TranslateX', 'TranslateY', 'ResizeShortestEdge'),
)
PHOTOMETRIC = (
    *('PhotoMetricDistortion', 'YOLOXHSVRandomAug', 'Color', 'Brightness', 'Contrast', 'Sharpness'),
    *('Solarize', 'SolarizeAdd', 'Posterize', 'Equalize', 'AutoContrast', 'Invert', 'Corrupt'),
    *('CutOut', 'RandomErasing', 'Grayscale', 'RandomGrayscale', 'ColorTransform'),
)
UNSUPPORTED = {
    **dict.fromkeys(
        ('Mosaic', 'CachedMosaic', 'MixUp', 'CachedMixUp', 'CopyPaste'), 'mixes several images'
    ),
    **dict.fromkeys(
        ('RandomAffine', 'Rotate', 'ShearX', 'ShearY'),
        'rotates or shears images and boxes',
    ),
    **dict.fromkeys(
        ('Expand', 'MinIoURandomCrop', 'RandomCenterCropPad', 'RandomShift', 'SegRescale'),
        'changes the geometry of images without recording it',
    ),
}
# Transforms of whole batches, after the pipeline, that do not change the geometry.
BATCH_KEEP_GEOMETRY = ('BatchFixedSizePad',)
_WRAPPERS = (
    *(RandomChoice, RandomApply, KeyMapper, TransformBroadcaster, ProposalBroadcaster),
    *(Compose, PipelineCompose),
)


def record_views(dataset: Any, key: str, photometric: bool) -> None:
    """Make the samples of a data set record their views, and check that all transforms are supported.

    Args:
        dataset: A built training data set; ``meta_keys`` of its pipelines are extended.
        key: The config key of the cached teacher.
        photometric: Whether transforms may change the colours of images.

    Raises:
        ConfigError: A transform is not supported; the message names the reason.
    """
    for transform in transforms_of(dataset):
        name = type(transform).__name__
        if name in UNSUPPORTED:
            raise ConfigError(
                f'{key}.cache: the training pipeline has {name}, which {UNSUPPORTED[name]}: stored outputs '
                f'cannot follow; remove the transform, or train with the live teacher'
            )
        if name in PHOTOMETRIC and not photometric:
            raise ConfigError(
                f'{key}.cache: the training pipeline has {name}, which changes the colours of images, but '
                f'the stored outputs are those of the unchanged images; set {key}.photometric=True to use '
                f'them nevertheless'
            )
        if name not in KEEP_GEOMETRY + RECORD_GEOMETRY + PHOTOMETRIC:
            raise ConfigError(
                f'{key}.cache: the training pipeline has {name}, which is not supported; remove it, or train '
                f'with the live teacher'
            )
        moving = getattr(transform, 'resize', transform)
        if name in RECORD_GEOMETRY and type(moving).__module__.startswith('mmcv.'):
            raise ConfigError(
                f"{key}.cache: the training pipeline has mmcv's {type(moving).__name__}, which does not "
                f"record how it changes the geometry; use mmdet's, 'mmdet.{type(moving).__name__}'"
            )
        if name == 'PackDetInputs':
            transform.meta_keys = (*dict.fromkeys((*transform.meta_keys, *META_KEYS)),)


def refuse_batch_augments(preprocessor: Any, key: str) -> None:
    """Check that the student's data preprocessor does not change the geometry of whole batches.

    Args:
        preprocessor: The student's data preprocessor.
        key: The config key of the cached teacher.

    Raises:
        ConfigError: It does, and no homography records the change.
    """
    for augment in getattr(preprocessor, 'batch_augments', None) or ():
        if type(augment).__name__ not in BATCH_KEEP_GEOMETRY:
            raise ConfigError(
                f"{key}.cache: the student's data_preprocessor has {type(augment).__name__} in "
                f'batch_augments, which changes images without recording it; remove it and resize in the '
                f'training pipeline (RandomChoiceResize), or train with the live teacher'
            )


def transforms_of(dataset: Any) -> Iterator[Any]:
    """Yield all transforms of a data set, including those inside wrappers."""
    for name in ('dataset', 'datasets'):
        inner = getattr(dataset, name, None)
        for each in inner if isinstance(inner, (list, tuple)) else [inner]:
            if each is not None:
                yield from transforms_of(each)
    pipeline = getattr(dataset, 'pipeline', None)
    # MultiImageMixDataset has a list of transforms, and turns some off by name.
    yield from _opened(pipeline if isinstance(pipeline, (list, tuple)) else [pipeline])


def _opened(transforms: Any) -> Iterator[Any]:
    for transform in transforms:
        if isinstance(transform, _WRAPPERS):
            yield from _opened(transform.transforms)
        elif isinstance(transform, (list, tuple)):
            yield from _opened(transform)
        elif isinstance(getattr(transform, 'resize', None), BaseTransform):
            yield transform  # RandomResize and RandomChoiceResize: they contain the resize that they use
        elif transform is not None:
            yield transform


def dataset_with_test_pipeline(cfg: Config) -> dict[str, Any]:
    """Return the config of the training data set with the pipeline of the test data.

    Args:
        cfg: The config of a training run.

    Raises:
        ConfigError: The config has no test or validation data.
    """
    for loader in ('test_dataloader', 'val_dataloader'):
        dataset = (cfg.get(loader) or {}).get('dataset') or {}
        while isinstance(dataset, dict) and 'pipeline' not in dataset:
            dataset = dataset.get('dataset') or (dataset.get('datasets') or [None])[0]
        if dataset:
            pipeline = dataset['pipeline']

            def take(_: Any, new: Any = pipeline) -> Any:
                return new

            return replace_pipeline(cfg.train_dataloader.dataset, take)
    raise ConfigError('test_dataloader: not given; a cache is written with its pipeline, set it')


def replace_pipeline(dataset: Any, change: Callable[[list], list]) -> ConfigDict:
    """Return the config of a data set with other pipelines, without wrappers that mix or repeat images.

    Args:
        dataset: The config of the data set.
        change: Returns the new pipeline for the old one.
    """
    dataset = ConfigDict(copy.deepcopy(dataset))
    inner = dataset.get('dataset')
    if dataset.get('type') in ('MultiImageMixDataset', 'RepeatDataset', 'ClassBalancedDataset'):
        return replace_pipeline(inner, change)
    if inner is not None:
        dataset.dataset = replace_pipeline(inner, change)
    elif 'datasets' in dataset:
        dataset.datasets = [replace_pipeline(each, change) for each in dataset.datasets]
    else:
        dataset.pipeline = copy.deepcopy(change(dataset.get('pipeline')))
    return dataset


def image_names(dataset: Any) -> list[str]:
    """Return the keys of a data set's images in a cache, in order."""
    return [_name(dataset.get_data_info(index)) for index in range(len(dataset))]


def _name(info: dict[str, Any]) -> str:
    return image_key(
        DetDataSample(metainfo={k: info[k] for k in ('img_id', 'img_path') if k in info})
    )


#: Views in which a cache is compared with its teacher, by name: transforms after the test pipeline's resize.
CHECKED_VIEWS: dict[str, list[dict[str, Any]]] = {
    'as written': [],
    'flipped': [dict(type='RandomFlip', prob=1.0)],
    'cropped to 3/4 of each side': [
        dict(
            type='RandomCrop',
            crop_size=(0.75, 0.75),
            crop_type='relative',
            allow_negative_crop=True,
        )
    ],
    'resized to 3/4': [dict(type='Resize', scale_factor=0.75)],
    'resized to 5/4': [dict(type='Resize', scale_factor=1.25)],
    'changed in colour': [dict(type='PhotoMetricDistortion')],
}


def pipeline_for_view(pipeline: list[dict], view: list[dict]) -> list[dict]:
    """Add transforms to a test pipeline, and make its samples record their views.

    Args:
        pipeline: The test pipeline.
        view: Configs of the transforms to add.

    Raises:
        ConfigError: The pipeline has no ``PackDetInputs``.
    """
    pipeline = copy.deepcopy(list(pipeline))
    packs = [index for index, each in enumerate(pipeline) if each['type'] == 'PackDetInputs']
    if not packs:
        raise ConfigError('the test pipeline must end with PackDetInputs; add it')
    pack = pipeline[packs[-1]]
    given = pack.get('meta_keys') or ('img_shape', 'scale_factor', 'flip', 'flip_direction')
    pack['meta_keys'] = (*dict.fromkeys((*given, *META_KEYS)),)
    return [*pipeline[: packs[-1]], *copy.deepcopy(view), *pipeline[packs[-1] :]]
