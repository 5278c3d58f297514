"""Images as a config's test pipeline makes them, to run an exported detector on."""

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

SHOWN = 4  # images of the test data that are taken
# What a pipeline does besides changing the image.
WITHOUT_IMAGE = ('LoadAnnotations', 'LoadPanopticAnnotations', 'LoadProposals', 'FilterAnnotations')
LOADS, PACKS = 'LoadImageFromFile', 'PackDetInputs'
AUGMENTS = ('TestTimeAug', 'MultiScaleFlipAug')

Image = dict[str, Any]  # ``inputs``, ``(3, height, width)``, and its ``data_samples``


def test_steps(config: Config) -> list[dict]:
    """The steps of the test pipeline that concern the image, from its file to the detector's input.

    Raises:
        ConfigError: It augments images.
    """
    loader = config.get('test_dataloader') or config.get('val_dataloader') or {}
    dataset = loader.get('dataset') or {}
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    steps = [dict(each) for each in dataset.get('pipeline') or ()]
    for each in steps:
        if each['type'] in AUGMENTS:
            raise ConfigError(
                f'export: the test pipeline has {each["type"]}; test-time augmentation cannot be exported'
            )
    steps = [each for each in steps if each['type'] not in WITHOUT_IMAGE]
    if not steps or steps[0]['type'] != LOADS:
        steps = [dict(type=LOADS), *steps]
    if steps[-1]['type'] != PACKS:
        steps.append(dict(type=PACKS))
    keys = ('img_path', 'ori_shape', 'img_shape', 'scale_factor')
    steps[-1] = dict(type=PACKS, meta_keys=keys)
    return steps


def steps_before(config: Config) -> list[dict]:
    """What a user of the file does to an image that is loaded: resizing, padding."""
    return test_steps(config)[1:-1]


def input_type(config: Config) -> torch.dtype:
    """Of the images that the pipeline makes."""
    floats = test_steps(config)[0].get('to_float32', False) or any(
        each['type'] == 'Normalize' for each in steps_before(config)
    )
    return torch.float32 if floats else torch.uint8


def load_images(
    config: Config, paths: Sequence[str], size: tuple[int, int] | None
) -> tuple[list[Image], str]:
    """Images to compare on, and where they come from.

    Args:
        config: A plain detector's.
        paths: Image files; without them the first of the test data, else random ones.
        size: Height and width that all are resized to.

    Raises:
        MissingFileError: A file is not there, or no image.
    """
    source = f'{len(paths)} images' if paths else ''
    if not paths:
        paths = _of_test_data(config)
        source = f'{len(paths)} images of the test data'
    if not paths:
        return _random(config, size), 'random images'
    return [_load(config, path, size) for path in paths], source


def _load(config: Config, path: str, size: tuple[int, int] | None) -> Image:
    pixels = mmcv.imread(path)
    if pixels is None:
        raise MissingFileError(f'--images: {path} cannot be read; name an image')
    if size:
        resized = mmcv.imresize(pixels, size[::-1])
        factor = (size[1] / pixels.shape[1], size[0] / pixels.shape[0])
        return _packed(torch.from_numpy(resized).permute(2, 0, 1).to(input_type(config)), factor)
    with DefaultScope.overwrite_default_scope(config.get('default_scope') or 'mmdet'):
        return Compose(test_steps(config))(dict(img_path=path, img_id=0))


def _packed(image: torch.Tensor, factor: tuple[float, float] = (1.0, 1.0)) -> Image:
    shape = tuple(image.shape[1:])
    sample = DetDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, scale_factor=factor))
    return dict(inputs=image, data_samples=sample)


def _of_test_data(config: Config) -> list[str]:
    part = 'test' if config.get('test_dataloader') else 'val'
    try:
        require(PlannedRun(config, (part,), path=''), only=('data files',))
        with redirect_stdout(StringIO()):  # pycocotools tells what it reads
            data = build_test_data(config, f'{part}_dataloader')
        found = [data.get_data_info(index)['img_path'] for index in range(min(SHOWN, len(data)))]
    except (UserError, OSError, KeyError, TypeError):
        return []  # of data that is elsewhere, or of no data set
    return found if all(map(_is_image, found)) else []


def _is_image(path: str) -> bool:
    try:
        return mmcv.imread(path) is not None
    except OSError:
        return False


def _random(config: Config, size: tuple[int, int] | None) -> list[Image]:
    height, width = size or image_size(config)
    generator = np.random.default_rng(0)
    found = []
    for shape in [(height, width)] if size else [(height, width), (width, height)]:
        # Blocks of 32 px, so that there is something to see.
        blocks = generator.integers(0, 256, (-(-shape[0] // 32), -(-shape[1] // 32), 3), np.uint8)
        pixels = mmcv.imresize(blocks, shape[::-1])
        found.append(_packed(torch.from_numpy(pixels).permute(2, 0, 1).to(input_type(config))))
    return found
