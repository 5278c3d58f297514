"""Measure time and memory of ``python -m mmkd check`` on an annotation file as large as COCO's train2017.

The script generates the file: 118,287 images and 860,001 boxes with outlines, as in COCO. The images do not
exist, so the check must report all of them as missing.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

IMAGES, BOXES, CLASSES = 118_287, 860_001, 80
OUTLINE = 24  # numbers per outline


def write(path: Path) -> None:
    """Write a file in COCO format, with boxes at random positions.

    It is written entry by entry: the memory of this process would count in the peak of the processes that it
    starts.
    """
    rng = random.Random(0)
    images = (
        dict(id=i, file_name=f'{i:012d}.jpg', width=640, height=480) for i in range(1, IMAGES + 1)
    )
    categories = (dict(id=i, name=f'class {i}') for i in range(1, CLASSES + 1))
    lists = dict(
        images=images,
        annotations=(annotation(number, rng) for number in range(1, BOXES + 1)),
        categories=categories,
    )
    with path.open('w') as file:
        for index, (name, entries) in enumerate(lists.items()):
            file.write(f'{", " if index else "{"}"{name}": [')
            for number, entry in enumerate(entries):
                file.write(f'{", " if number else ""}{json.dumps(entry)}')
            file.write(']')
        file.write('}')


def annotation(number: int, rng: random.Random) -> dict[str, Any]:
    x, y = rng.randrange(500), rng.randrange(350)
    width, height = rng.randrange(10, 140), rng.randrange(10, 130)
    outline = [round(rng.random() * 480, 2) for _ in range(OUTLINE)]
    return dict(
        id=number,
        image_id=rng.randrange(1, IMAGES + 1),
        category_id=rng.randrange(1, CLASSES + 1),
        bbox=[x, y, width, height],
        area=width * height,
        iscrowd=0,
        segmentation=[outline],
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / 'images').mkdir()
        write(root / 'train.json')
        dataset = dict(
            type='CocoDataset',
            data_root=folder,
            ann_file='train.json',
            data_prefix=dict(img='images/'),
            metainfo=dict(classes=tuple(f'class {i}' for i in range(1, CLASSES + 1))),
            filter_cfg=dict(filter_empty_gt=True, min_size=32),
        )
        config = f'train_cfg = dict()\ntrain_dataloader = dict(dataset={dataset!r})\n'
        (root / 'config.py').write_text(config)
        start = time.perf_counter()
        command = [
            sys.executable,
            '-m',
            'mmkd',
            'check',
            str(root / 'config.py'),
            '--device',
            'cpu',
        ]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
        size = (root / 'train.json').stat().st_size
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        print(run.stdout)
        print(
            f'{size / 1e6:.0f} MB of annotations: {seconds:.0f} s, peak memory {peak / 1e9:.2f} GB'
        )


if __name__ == '__main__':
    main()
