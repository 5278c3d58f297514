"""Which training pipelines a cached teacher can follow, and the one a cache is written with."""

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

# What a sample must record of itself.
META_KEYS = ('img_id', 'img_path', 'ori_shape', HOMOGRAPHY)
# By what they do to an image. Those that move it write down how, as resizes, flips and crops of mmdet do.
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
        'turns or shears images, and boxes with them',
    ),
    **dict.fromkeys(
        ('Expand', 'MinIoURandomCrop', 'RandomCenterCropPad', 'RandomShift', 'SegRescale'),
        'moves images without writing down how',
    ),
}
# Of whole batches, after the pipeline: those that leave images where they are.
BATCH_KEEP_GEOMETRY = ('BatchFixedSizePad',)
_WRAPPERS = (
    *(RandomChoice, RandomApply, KeyMapper, TransformBroadcaster, ProposalBroadcaster),
    *(Compose, PipelineCompose),
)


def record_views(dataset: Any, key: str, photometric: bool) -> None:
    """Make a data set's samples record their views, and refuse what changes images in other ways.

    Args:
        dataset: A training data set, as it is used; ``meta_keys`` of its pipelines are extended.
        key: The config key of the cached teacher.
        photometric: Whether images may be changed in colour and the like.

    Raises:
        ConfigError: A transform in the way, with what it does.
    """
    for transform in transforms_of(dataset):
        name = type(transform).__name__
        if name in UNSUPPORTED:
            raise ConfigError(
                f'{key}.cache: the training pipeline has {name}, which {UNSUPPORTED[name]}: stored outputs '
                f'cannot follow; leave the transform out, or train with the teacher itself'
            )
        if name in PHOTOMETRIC and not photometric:
            raise ConfigError(
                f'{key}.cache: the training pipeline has {name}, which changes what images look '
                f'like after the '
                f'teacher has seen them; if it may answer for the unchanged image, set {key}.photometric=True'
            )
        if name not in KEEP_GEOMETRY + RECORD_GEOMETRY + PHOTOMETRIC:
            raise ConfigError(
                f'{key}.cache: whether boxes can follow {name} of the training pipeline is not '
                f'known; leave it out, '
                f'or train with the teacher itself'
            )
        moving = getattr(transform, 'resize', transform)
        if name in RECORD_GEOMETRY and type(moving).__module__.startswith('mmcv.'):
            raise ConfigError(
                f"{key}.cache: the training pipeline has mmcv's {type(moving).__name__}, which does not "
                f"write down how it moves images; name mmdet's, 'mmdet.{type(moving).__name__}'"
            )
        if name == 'PackDetInputs':
            transform.meta_keys = (*dict.fromkeys((*transform.meta_keys, *META_KEYS)),)


def refuse_batch_augments(preprocessor: Any, key: str) -> None:
    """Refuse a student's data preprocessor that moves whole batches, which no homography describes.

    Args:
        preprocessor: The data preprocessor.
        key: The config key of the cached teacher.
    """
    for augment in getattr(preprocessor, 'batch_augments', None) or ():
        if type(augment).__name__ not in BATCH_KEEP_GEOMETRY:
            raise ConfigError(
                f"{key}.cache: the student's data_preprocessor has {type(augment).__name__} in "
                f'batch_augments, which changes images without writing down how; leave it out and resize '
                f'in the training pipeline (RandomChoiceResize), or train with the teacher itself'
            )


def transforms_of(dataset: Any) -> Iterator[Any]:
    """All transforms that the images of a data set may go through, wrappers opened."""
    for name in ('dataset', 'datasets'):
        inner = getattr(dataset, name, None)
        for each in inner if isinstance(inner, (list, tuple)) else [inner]:
            if each is not None:
                yield from transforms_of(each)
    pipeline = getattr(dataset, 'pipeline', None)
    # MultiImageMixDataset has a list of them, and switches some off by name.
    yield from _opened(pipeline if isinstance(pipeline, (list, tuple)) else [pipeline])


def _opened(transforms: Any) -> Iterator[Any]:
    for transform in transforms:
        if isinstance(transform, _WRAPPERS):
            yield from _opened(transform.transforms)
        elif isinstance(transform, (list, tuple)):
            yield from _opened(transform)
        elif isinstance(getattr(transform, 'resize', None), BaseTransform):
            yield transform  # RandomResize and RandomChoiceResize: the resize they hold is theirs
        elif transform is not None:
            yield transform


def dataset_with_test_pipeline(cfg: Config) -> dict[str, Any]:
    """The config of a training data set, its images shown as the test pipeline shows them.

    Args:
        cfg: A training's config.

    Raises:
        ConfigError: It has no test or validation data, whose pipeline to take.
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
    raise ConfigError(
        'the config has no test_dataloader, by whose pipeline the teacher sees the training images'
    )


def replace_pipeline(dataset: Any, change: Callable[[list], list]) -> ConfigDict:
    """The config of the same data set with other pipelines; what mixes or repeats its images is left out.

    Args:
        dataset: The config.
        change: Gives a new pipeline for an old one.
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
    """How a cache calls the images of a data set, in order."""
    return [_name(dataset.get_data_info(index)) for index in range(len(dataset))]


def _name(info: dict[str, Any]) -> str:
    return image_key(
        DetDataSample(metainfo={k: info[k] for k in ('img_id', 'img_path') if k in info})
    )


#: Views in which a cache is compared with its teacher, by name: what follows the test pipeline's resize.
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
    """A test pipeline whose images are shown in another view, and record it.

    Args:
        pipeline: The test pipeline.
        view: Configs of transforms.
    """
    pipeline = copy.deepcopy(list(pipeline))
    packs = [index for index, each in enumerate(pipeline) if each['type'] == 'PackDetInputs']
    if not packs:
        raise ConfigError('the test pipeline does not end in PackDetInputs')
    pack = pipeline[packs[-1]]
    given = pack.get('meta_keys') or ('img_shape', 'scale_factor', 'flip', 'flip_direction')
    pack['meta_keys'] = (*dict.fromkeys((*given, *META_KEYS)),)
    return [*pipeline[: packs[-1]], *copy.deepcopy(view), *pipeline[packs[-1] :]]
