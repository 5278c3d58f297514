"""Create the photographs of the studies from Pascal VOC 2012: its images of animals, scaled down.

From `train` it takes all images that show a cat, cow, dog, horse or sheep (1,697), from `val` half of them,
those of voc_animals_val.txt (865). Images and boxes are scaled: the longest side has 320 px. Annotations are
in COCO format, with all twenty classes. VOC's `difficult` flag is dropped.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / 'tools'))

from _cli import run_tool  # noqa: E402

ANIMALS = {'cat', 'cow', 'dog', 'horse', 'sheep'}
CLASSES = (
    *('aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow'),
    *('diningtable', 'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa'),
    *('train', 'tvmonitor'),
)
SIDE = 320  # px


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('voc', type=Path, help='the folder that contains VOC2012/')
    parser.add_argument('out', type=Path, help='an empty folder; VOC2012/ is created in it')
    parser.add_argument('--debug', action='store_true', help='show tracebacks of errors')
    parser.set_defaults(device='cpu', gpus=None, local_rank=0)
    return parser.parse_args()


def make(args: argparse.Namespace) -> None:
    from mmkd.errors import ConfigError, MissingFileError

    source, target = args.voc / 'VOC2012', args.out / 'VOC2012'
    lists = {split: source / f'ImageSets/Main/{split}.txt' for split in ('train', 'val')}
    for path in lists.values():
        if not path.is_file():
            raise MissingFileError(f'{args.voc}: must contain Pascal VOC 2012, no file {path}')
    if target.exists():
        raise ConfigError(f'{target}: already exists; choose an empty folder')
    chosen = set((HERE / 'voc_animals_val.txt').read_text(encoding='utf-8').split())
    (target / 'JPEGImages').mkdir(parents=True)
    (target / 'annotations').mkdir()
    for split, path in lists.items():
        content = dict(images=[], annotations=[])
        content['categories'] = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
        for name in path.read_text(encoding='utf-8').split():
            if split == 'train' or name in chosen:
                add(name, source, target, content)
        out = target / f'annotations/instances_{split}.json'
        out.write_text(json.dumps(content), encoding='utf-8')
        print(f'{split}: {len(content["images"])} images in {out}')


def add(name: str, source: Path, target: Path, content: dict[str, list[Any]]) -> None:
    """Scale one image if it shows an animal, and add it and its boxes to the annotations."""
    from PIL import Image

    objects = ElementTree.parse(source / f'Annotations/{name}.xml').getroot().findall('object')
    if not ANIMALS & {each.findtext('name') for each in objects}:
        return
    with Image.open(source / f'JPEGImages/{name}.jpg') as image:
        factor = SIDE / max(image.size)
        small = image.convert('RGB').resize([round(side * factor) for side in image.size])
    small.save(target / f'JPEGImages/{name}.jpg', quality=90)
    number = int(name.replace('_', ''))
    width, height = small.size
    content['images'].append(dict(id=number, file_name=f'{name}.jpg', width=width, height=height))
    for each in objects:
        # VOC counts pixels from 1, and the last pixel belongs to the box.
        left, top, right, bottom = (
            factor * (float(each.findtext(f'bndbox/{edge}')) - (edge in ('xmin', 'ymin')))
            for edge in ('xmin', 'ymin', 'xmax', 'ymax')
        )
        box = [round(value, 2) for value in (left, top, right - left, bottom - top)]
        content['annotations'].append(
            dict(
                id=len(content['annotations']) + 1,
                image_id=number,
                category_id=CLASSES.index(each.findtext('name')) + 1,
                bbox=box,
                area=round(box[2] * box[3], 2),
                iscrowd=0,
            )
        )


if __name__ == '__main__':
    run_tool(make, parse_args())
