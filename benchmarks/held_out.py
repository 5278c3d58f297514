"""Hold out a part of the training images: settings are chosen on it, and no result is measured on it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

# All studies hold out the same images.
SEED = 0


def hold_out(cfg: Any, share: float, folder: Path) -> None:
    """Change a config to train on a part of its training images and to validate on the rest.

    Args:
        cfg: A config with one training annotation file in COCO format; changed in place.
        share: The share of the images with objects that is held out.
        folder: The folder for the two new annotation files.

    Raises:
        ConfigError: The share is not above 0 and below 1.
    """
    from mmkd.errors import ConfigError

    if not 0 < share < 1:
        raise ConfigError(f'held_out: must be above 0 and below 1, got {share}')
    train_set = cfg.train_dataloader.dataset
    source = Path(train_set.get('data_root') or '') / train_set.ann_file
    content = json.loads(source.read_text(encoding='utf-8'))
    images = sorted({each['image_id'] for each in content['annotations']})
    random.Random(SEED).shuffle(images)
    held = set(images[: round(share * len(images))])
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, contains in (('fit', held.isdisjoint), ('held', held.issuperset)):
        part = dict(
            content,
            images=[each for each in content['images'] if contains([each['id']])],
            annotations=[each for each in content['annotations'] if contains([each['image_id']])],
        )
        files[name] = str((folder / f'{source.stem}_{name}.json').absolute())
        Path(files[name]).write_text(json.dumps(part), encoding='utf-8')
    train_set.ann_file = files['fit']
    for split in ('val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        dataset.ann_file, dataset.data_prefix = files['held'], dict(train_set.data_prefix)
        cfg[f'{split}_evaluator'].ann_file = files['held']
