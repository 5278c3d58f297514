"""A part of the training images held out, to choose settings on that no result is measured on."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

# The choice of images is the same in every study.
SEED = 0


def hold_out(cfg: Any, share: float, folder: Path) -> None:
    """Let a config train on a part of its training images and be validated on the rest.

    Args:
        cfg: A config whose training annotations are one file in COCO's form; changed in place.
        share: Of the images that show something, how many are held out.
        folder: Where the two annotation files go.
    """
    from mmkd.errors import ConfigError

    if not 0 < share < 1:
        raise ConfigError(f'held_out={share} is no share of the images, above 0 and below 1')
    trained = cfg.train_dataloader.dataset
    source = Path(trained.get('data_root') or '') / trained.ann_file
    whole = json.loads(source.read_text(encoding='utf-8'))
    shown = sorted({each['image_id'] for each in whole['annotations']})
    random.Random(SEED).shuffle(shown)
    held = set(shown[: round(share * len(shown))])
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, is_in in (('fit', held.isdisjoint), ('held', held.issuperset)):
        part = dict(
            whole,
            images=[each for each in whole['images'] if is_in([each['id']])],
            annotations=[each for each in whole['annotations'] if is_in([each['image_id']])],
        )
        files[name] = str((folder / f'{source.stem}_{name}.json').absolute())
        Path(files[name]).write_text(json.dumps(part), encoding='utf-8')
    trained.ann_file = files['fit']
    for kind in ('val', 'test'):
        dataset = cfg[f'{kind}_dataloader'].dataset
        dataset.ann_file, dataset.data_prefix = files['held'], dict(trained.data_prefix)
        cfg[f'{kind}_evaluator'].ann_file = files['held']
