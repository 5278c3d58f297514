"""Images from the test pipeline of a config, to compare an exported detector with PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import mmcv
import numpy as np
import torch
from mmcv.transforms import Compose
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import DefaultScope

from ..analysis.complexity import build_test_data
from ..analysis.inspection import image_size
from ..errors import ConfigError, MissingFileError, UserError
from ..preflight import PlannedRun, require

MAX_IMAGES = 4  # from the test data
# Transforms that do not change the image.
ANNOTATION_TRANSFORMS = (
    'LoadAnnotations',
    'LoadPanopticAnnotations',
    'LoadProposals',
    'FilterAnnotations',
)
LOAD_TRANSFORM, PACK_TRANSFORM = 'LoadImageFromFile', 'PackDetInputs'
TEST_TIME_AUGMENTATIONS = ('TestTimeAug', 'MultiScaleFlipAug')

Image = dict[str, Any]  # ``inputs``, ``(3, height, width)``, and its ``data_samples``


def image_transforms(config: Config) -> list[dict]:
    """The transforms of the test pipeline that change the image, from its file to the detector's input.

    Raises:
        ConfigError: The pipeline uses test-time augmentation.
    """
    loader = config.get('test_dataloader') or config.get('val_dataloader') or {}
    dataset = loader.get('dataset') or {}
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    steps = [dict(each) for each in dataset.get('pipeline') or ()]
    for each in steps:
        if each['type'] in TEST_TIME_AUGMENTATIONS:
            raise ConfigError(
                f'export: the test pipeline has {each["type"]}, but test-time augmentation cannot be '
                f'exported; remove it'
            )
    steps = [each for each in steps if each['type'] not in ANNOTATION_TRANSFORMS]
    if not steps or steps[0]['type'] != LOAD_TRANSFORM:
        steps = [dict(type=LOAD_TRANSFORM), *steps]
    if steps[-1]['type'] != PACK_TRANSFORM:
        steps.append(dict(type=PACK_TRANSFORM))
    keys = ('img_path', 'ori_shape', 'img_shape', 'scale_factor')
    steps[-1] = dict(type=PACK_TRANSFORM, meta_keys=keys)
    return steps


def user_transforms(config: Config) -> list[dict]:
    """The transforms between loading and packing, such as resizing; the user of the file must apply them."""
    return image_transforms(config)[1:-1]


def input_type(config: Config) -> torch.dtype:
    """The data type of the images that the pipeline returns."""
    floats = image_transforms(config)[0].get('to_float32', False) or any(
        each['type'] == 'Normalize' for each in user_transforms(config)
    )
    return torch.float32 if floats else torch.uint8


def load_images(
    config: Config, paths: Sequence[str], size: tuple[int, int] | None
) -> tuple[list[Image], str]:
    """Images for the comparison, and a description of their source.

    Args:
        config: Config of a plain detector.
        paths: Image files. If empty, the first images of the test data, or random images without test data.
        size: Height and width to which all images are resized; None for the size of the test pipeline.

    Raises:
        MissingFileError: A file does not exist or is not an image.
    """
    source = f'{len(paths)} images' if paths else ''
    if not paths:
        paths = _test_image_paths(config)
        source = f'{len(paths)} images of the test data'
    if not paths:
        return _random_images(config, size), 'random images'
    return [_load(config, path, size) for path in paths], source


def _load(config: Config, path: str, size: tuple[int, int] | None) -> Image:
    pixels = mmcv.imread(path)
    if pixels is None:
        raise MissingFileError(f'--images: {path} cannot be read; name an image')
    if size:
        resized = mmcv.imresize(pixels, size[::-1])
        factor = (size[1] / pixels.shape[1], size[0] / pixels.shape[0])
        return _pack(torch.from_numpy(resized).permute(2, 0, 1).to(input_type(config)), factor)
    with DefaultScope.overwrite_default_scope(config.get('default_scope') or 'mmdet'):
        return Compose(image_transforms(config))(dict(img_path=path, img_id=0))


def _pack(image: torch.Tensor, factor: tuple[float, float] = (1.0, 1.0)) -> Image:
    shape = tuple(image.shape[1:])
    sample = DetDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, scale_factor=factor))
    return dict(inputs=image, data_samples=sample)


def _test_image_paths(config: Config) -> list[str]:
    part = 'test' if config.get('test_dataloader') else 'val'
    try:
        require(PlannedRun(config, (part,), path=''), only=('data files',))
        with redirect_stdout(StringIO()):  # pycocotools prints its progress
            data = build_test_data(config, f'{part}_dataloader')
        found = [
            data.get_data_info(index)['img_path'] for index in range(min(MAX_IMAGES, len(data)))
        ]
    except (UserError, OSError, KeyError, TypeError):
        return []  # the test data is missing, or the config has none
    return found if all(map(_is_image, found)) else []


def _is_image(path: str) -> bool:
    try:
        return mmcv.imread(path) is not None
    except OSError:
        return False


def _random_images(config: Config, size: tuple[int, int] | None) -> list[Image]:
    height, width = size or image_size(config)
    generator = np.random.default_rng(0)
    found = []
    for shape in [(height, width)] if size else [(height, width), (width, height)]:
        # Blocks of 32 px: a detector responds more to them than to noise of single pixels.
        blocks = generator.integers(0, 256, (-(-shape[0] // 32), -(-shape[1] // 32), 3), np.uint8)
        pixels = mmcv.imresize(blocks, shape[::-1])
        found.append(_pack(torch.from_numpy(pixels).permute(2, 0, 1).to(input_type(config))))
    return found
