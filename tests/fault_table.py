"""Common faults of data sets, configs and weights, and the message of each.

Each row changes a valid run in COCO or VOC format in one way. docs/checks.md is generated from this table.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.config import Config
from PIL import Image
from tiny_models import CLASSES, faster_rcnn
from tiny_training import training_config, write_coco
from tiny_voc import write_voc

SOUND_XML = """<annotation><size><width>160</width><height>120</height><depth>3</depth></size>{objects}
</annotation>"""
OBJECT = (
    '<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{0}</xmin><ymin>{1}</ymin>'
    '<xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>'
)


@dataclass
class Case:
    """A valid run in a folder; a fault changes it, and :meth:`write` writes ``config`` to ``config.py``."""

    folder: Path
    config: Config

    @property
    def train(self) -> dict:
        return self.config.train_dataloader.dataset

    def for_all(self, **changes: Any) -> None:
        """Change the data sets of all three loaders."""
        for mode in ('train', 'val', 'test'):
            for key, value in changes.items():  # `update` would merge dicts
                self.config[f'{mode}_dataloader'].dataset[key] = value

    def edit(self, change: Callable[[dict], Any], name: str = 'annotations.json') -> None:
        """Change the content of the annotation file in place, or write the value that ``change`` returns."""
        path = self.folder / 'data' / name
        content = json.loads(path.read_text())
        new = change(content)
        path.write_text(json.dumps(content if new is None else new))

    def write(self) -> Path:
        path = self.folder / 'config.py'
        self.config.dump(str(path))
        return path


@dataclass(frozen=True)
class Fault:
    """One row: a fault, the change that causes it, and its message.

    Attributes:
        kind: The heading in docs/checks.md.
        title: The fault, in a few words.
        apply: Changes a valid run so that it has the fault.
        expected: Parts of the message.
        form: Format of the data set: ``coco`` or ``voc``.
        advice: Whether the run continues with a warning.
        check_only: Whether only ``check`` reports it before a run; the run itself stops before its first
            iteration.
    """

    kind: str
    title: str
    apply: Callable[[Case], Any]
    expected: tuple[str, ...]
    form: str = 'coco'
    advice: bool = False
    check_only: bool = False


def sound_case(folder: Path, form: str) -> Case:
    """A run that trains: three classes in COCO format, two in VOC format."""
    folder.mkdir(parents=True, exist_ok=True)
    coco = write_coco(folder / 'data', images=4)
    config = training_config(faster_rcnn(), coco, folder / 'unused', iters=2)
    config.pop('work_dir')
    if form == 'voc':
        shutil.rmtree(coco)
        write_voc(coco)
        config.model = faster_rcnn(2)
        for mode, split in (('train', 'train'), ('val', 'val'), ('test', 'val')):
            loader = config[f'{mode}_dataloader']
            loader.dataset = dict(
                type='VOCDataset',
                data_root=str(coco),
                ann_file=f'VOC2012/ImageSets/Main/{split}.txt',
                data_prefix=dict(sub_data_root='VOC2012/'),
                metainfo=dict(classes=('dog', 'tvmonitor')),
                pipeline=loader.dataset.pipeline,
                test_mode=mode != 'train',
            )
            if mode != 'train':
                config[f'{mode}_evaluator'] = dict(type='VOCMetric', metric='mAP')
    return Case(folder, config)


# ---------------------------------------------------------------------- changes that cause a fault


def classes(*names: str, **more: Any) -> Callable[[Case], None]:
    return lambda case: case.for_all(metainfo=dict(classes=names, **more))


def of_all(name: str, **changes: Any) -> Callable[[Case], None]:
    """Change all entries of a list of the annotation file."""
    return lambda case: case.edit(lambda it: [each.update(changes) for each in it[name]] and None)


def without(name: str, key: str, count: int | None = None) -> Callable[[Case], None]:
    """Remove a key from the first entries of a list of the annotation file."""
    return lambda case: case.edit(lambda it: [each.pop(key) for each in it[name][:count]] and None)


def boxes(change: Callable[[list, dict], list], count: int | None = None) -> Callable[[Case], None]:
    """Change boxes of the annotation file; ``change`` is given the box and its image."""

    def edit(content: dict) -> None:
        images = {each['id']: each for each in content['images']}
        for each in content['annotations'][:count]:
            each['bbox'] = change(each['bbox'], images[each['image_id']])

    return lambda case: case.edit(edit)


def file_names(change: Callable[[str], str], count: int | None = None) -> Callable[[Case], None]:
    def edit(content: dict) -> None:
        for each in content['images'][:count]:
            each['file_name'] = change(each['file_name'])

    return lambda case: case.edit(edit)


def raw(change: Callable[[bytes], bytes]) -> Callable[[Case], None]:
    """Change the bytes of the annotation file."""

    def apply(case: Case) -> None:
        path = case.folder / 'data/annotations.json'
        path.write_bytes(change(path.read_bytes()))

    return apply


def xml(*objects: str, count: int = 1, split: str = 'train') -> Callable[[Case], None]:
    """Write objects into the XML files of the first images of a split."""

    def apply(case: Case) -> None:
        for index in range(count):
            path = case.folder / f'data/VOC2012/Annotations/2008_{split}_{index}.xml'
            path.write_text(SOUND_XML.format(objects=''.join(objects)))

    return apply


def voc_object(name: str, *corners: float) -> str:
    return OBJECT.format(*(corners or (21, 31, 81, 101)), name=name)


def model(key: str, value: Any) -> Callable[[Case], None]:
    return lambda case: case.config.merge_from_dict({f'model.{key}': value})


def masked(case: Case) -> None:
    """A mask head for more classes than the box head has."""
    roi_head = case.config.model.roi_head
    roi_head.mask_roi_extractor = dict(roi_head.bbox_roi_extractor)
    roi_head.mask_head = dict(
        type='FCNMaskHead', num_convs=1, in_channels=16, conv_out_channels=8, num_classes=80
    )
    case.config.model.type = 'MaskRCNN'


def wrapped(case: Case) -> None:
    inner = dict(case.train)
    inner.pop('metainfo')
    case.config.train_dataloader.dataset = dict(
        type='RepeatDataset', times=2, dataset=inner, metainfo=dict(classes=CLASSES)
    )


def image(change: Callable[[Path], Any], name: str = '0.png') -> Callable[[Case], None]:
    return lambda case: change(case.folder / 'data/images' / name) and None


def rotated(path: Path) -> None:
    """Replace an image by one with an EXIF tag that rotates it by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((96, 128, 3), np.uint8)
    Image.fromarray(pixels).save(path, format='JPEG', exif=exif)


def rotate_all(case: Case) -> None:
    for path in (case.folder / 'data/images').iterdir():
        rotated(path)


def move_images(case: Case) -> None:
    folder = case.folder / 'data/images'
    (folder / 'train').mkdir()
    for path in folder.glob('*.png'):
        path.rename(folder / 'train' / path.name)


def reorder(content: dict) -> None:
    content['categories'].reverse()


def own_names(case: Case) -> None:
    """No class names in the config, so the names of COCO apply."""
    for mode in ('train', 'val', 'test'):
        case.config[f'{mode}_dataloader'].dataset.pop('metainfo')


def val_file(change: Callable[[dict], Any]) -> Callable[[Case], None]:
    """Validate with a changed copy of the annotation file."""

    def apply(case: Case) -> None:
        shutil.copy(case.folder / 'data/annotations.json', case.folder / 'data/val.json')
        case.edit(change, 'val.json')
        for mode in ('val', 'test'):
            case.config[f'{mode}_dataloader'].dataset.ann_file = 'val.json'
            case.config[f'{mode}_evaluator'].ann_file = str(case.folder / 'data/val.json')

    return apply


def load_from(change: Callable[[dict], dict]) -> Callable[[Case], None]:
    """Start from a checkpoint with other keys than the detector's."""

    def apply(case: Case) -> None:
        from mmdet.registry import MODELS

        state = MODELS.build(case.config.model).state_dict()
        path = case.folder / 'weights.pth'
        torch.save(dict(state_dict=change(state), meta={}), path)
        case.config.load_from = str(path)

    return apply


def distil(**changes: Any) -> Callable[[Case], None]:
    """Distil from a teacher of the same type, with ``changes`` to the model config."""

    def apply(case: Case) -> None:
        write_teacher(case)
        model = dict(
            type='Distiller',
            student=case.config.model,
            teacher=dict(
                config=str(case.folder / 'teacher.py'), checkpoint=str(case.folder / 'teacher.pth')
            ),
            losses=dict(
                loss_kd=dict(type='KLDivergence', tau=2.0, align=dict(type='RoIClassAlignment'))
            ),
        )
        case.config.pop('model')
        case.config.model = model
        case.config.custom_imports = dict(imports=['mmkd'])
        case.config.merge_from_dict({f'model.{key}': value for key, value in changes.items()})

    return apply


def write_teacher(case: Case) -> None:
    from mmdet.registry import MODELS

    config = faster_rcnn(len(CLASSES), channels=24)
    Config(dict(model=config, default_scope='mmdet')).dump(str(case.folder / 'teacher.py'))
    state = MODELS.build(config).state_dict()
    meta = dict(dataset_meta=dict(classes=CLASSES))
    torch.save(dict(state_dict=state, meta=meta), case.folder / 'teacher.pth')


def teacher_file(text: str) -> Callable[[Case], None]:
    def apply(case: Case) -> None:
        distil()(case)
        (case.folder / 'teacher.py').write_text(text)

    return apply


def teacher_state(change: Callable[[dict], dict]) -> Callable[[Case], None]:
    def apply(case: Case) -> None:
        distil()(case)
        path = case.folder / 'teacher.pth'
        content = torch.load(path, weights_only=True)
        content['state_dict'] = change(content['state_dict'])
        torch.save(content, path)

    return apply


def teacher_without(key: str) -> Callable[[Case], None]:
    def apply(case: Case) -> None:
        distil()(case)
        config = Config.fromfile(str(case.folder / 'teacher.py'))
        config.model[key] = None
        config.dump(str(case.folder / 'teacher.py'))

    return apply


def named_by_another_hash(case: Case) -> None:
    distil()(case)
    path = case.folder / 'teacher-00000000.pth'
    (case.folder / 'teacher.pth').rename(path)
    case.config.model.teacher.checkpoint = str(path)


def both(*steps: Callable[[Case], Any]) -> Callable[[Case], None]:
    def apply(case: Case) -> None:
        for step in steps:
            step(case)

    return apply


def each(name: str, change: Callable[[int, dict], Any]) -> Callable[[Case], None]:
    """Change each entry of a list of the annotation file; ``change`` gets its index and the entry."""
    return lambda case: case.edit(
        lambda it: [change(index, entry) for index, entry in enumerate(it[name])] and None
    )


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def voc_file(
    name: str, change: Callable[[str], str], encoding: str = 'utf-8'
) -> Callable[[Case], None]:
    """Change a text file of the VOC data set."""

    def apply(case: Case) -> None:
        path = case.folder / 'data/VOC2012' / name
        path.write_text(change(path.read_text()), encoding=encoding)

    return apply


def all_difficult(case: Case) -> None:
    for path in (case.folder / 'data/VOC2012/Annotations').glob('*.xml'):
        path.write_text(path.read_text().replace('<difficult>0<', '<difficult>1<'))


def evaluator_of_other_images(case: Case) -> None:
    def renumber(content: dict) -> None:
        for entry in content['images']:
            entry['id'] += 100
        for entry in content['annotations']:
            entry['image_id'] += 100

    val_file(renumber)(case)
    evaluate_with_training_file(case)


def evaluate_with_training_file(case: Case) -> None:
    for mode in ('val', 'test'):
        case.config[f'{mode}_evaluator'].ann_file = str(case.folder / 'data/annotations.json')


def fewer_images_than_a_batch(case: Case) -> None:
    case.config.train_cfg = dict(by_epoch=True, max_epochs=1)
    case.config.param_scheduler = []
    case.config.train_dataloader.update(
        batch_size=8, drop_last=True, sampler=dict(type='DefaultSampler', shuffle=True)
    )


def weights_file(content: bytes) -> Callable[[Case], None]:
    def apply(case: Case) -> None:
        path = case.folder / 'weights.pth'
        path.write_bytes(content)
        case.config.load_from = str(path)

    return apply


def pretrained(change: Callable[[dict], dict]) -> Callable[[Case], None]:
    """The backbone starts from a file with other keys than its own."""

    def apply(case: Case) -> None:
        from mmdet.registry import MODELS

        state = MODELS.build(case.config.model).backbone.state_dict()
        path = case.folder / 'backbone.pth'
        torch.save(change(state), path)
        case.config.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(path))

    return apply


def teacher_config(change: Callable[[str], str]) -> Callable[[Case], None]:
    def apply(case: Case) -> None:
        distil()(case)
        path = case.folder / 'teacher.py'
        path.write_text(change(path.read_text()))

    return apply


def broken_link(case: Case) -> None:
    path = case.folder / 'data/images/0.png'
    path.unlink()
    path.symlink_to('nowhere.png')


def other_ending(case: Case) -> None:
    path = case.folder / 'data/images/0.png'
    path.rename(path.with_suffix('.PNG'))


def per_cent(case: Case) -> None:
    """Boxes in per cent, and images large enough for the check to notice."""
    for path in (case.folder / 'data/images').iterdir():
        Image.open(path).resize((400, 300)).save(path)
    boxes(
        lambda box, image: [
            x * 100 / image[y] for x, y in zip(box, ('width', 'height') * 2, strict=True)
        ]
    )(case)
    of_all('images', width=400, height=300)(case)


def pipeline(change: Callable[[list], Any], *modes: str) -> Callable[[Case], None]:
    """Change the list of transforms of the given modes, by default of the training data."""

    def apply(case: Case) -> None:
        for mode in modes or ('train',):
            dataset = case.config[f'{mode}_dataloader'].dataset
            steps = list(dataset.pipeline)
            dataset.pipeline = change(steps) or steps

    return apply


def option(step: int, name: str, now: str) -> Callable[[Case], None]:
    """Rename an option of a transform to its MMDetection 2 name."""
    return pipeline(lambda steps: steps[step].update({name: steps[step].pop(now)}))


def with_masks(case: Case) -> None:
    """A detector that predicts masks, and a segmentation for each object."""
    masked(case)
    case.config.model.roi_head.mask_head.num_classes = 3
    case.config.model.train_cfg.rcnn.mask_size = 14
    case.config.model.test_cfg.rcnn.mask_thr_binary = 0.5
    pipeline(lambda steps: steps[1].update(with_mask=True), 'train', 'val', 'test')(case)

    def outline(index: int, entry: dict) -> None:
        x, y, width, height = entry['bbox']
        entry['segmentation'] = [[x, y, x + width, y, x + width, y + height]]

    each('annotations', outline)(case)


NORMALIZE = dict(type='Normalize', mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4], to_rgb=True)


def setting(key: str, value: Any) -> Callable[[Case], None]:
    return lambda case: case.config.merge_from_dict({key: value})


@DATASETS.register_module()
class ReversedDataset(CocoDataset):
    METAINFO = dict(classes=tuple(reversed(CLASSES)))


LFS_POINTER = b'version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12\n'

# ---------------------------------------------------------------------- the table

NUMBER = 'Number of classes'
NAMES = 'Class names'
ORDER = 'Order of classes'
BOXES = 'Boxes'
FILES = 'Files'
TEACHERS = 'Teachers and weights'
PIPELINES = 'Pipelines'
LOSSES = 'Losses'
OTHERS = 'Optimizer, schedules, hooks and metrics'

FAULTS = (
    Fault(
        NUMBER,
        'the head has 80 classes, the data has 3',
        model('roi_head.bbox_head.num_classes', 80),
        ('model.roi_head.bbox_head.num_classes: must be 3', 'got 80; set it to 3'),
    ),
    Fault(
        NUMBER,
        'the head has fewer classes than the data',
        model('roi_head.bbox_head.num_classes', 2),
        ('model.roi_head.bbox_head.num_classes: must be 3', 'got 2'),
    ),
    Fault(
        NUMBER,
        'box head and mask head have different numbers of classes',
        masked,
        ('model.roi_head.mask_head.num_classes: must be 3', 'got 80'),
    ),
    Fault(
        NUMBER,
        'the student has another number of classes',
        distil(**{'student.roi_head.bbox_head.num_classes': 80}),
        ('model.student.roi_head.bbox_head.num_classes: must be 3', 'got 80'),
    ),
    Fault(
        NUMBER,
        'the same, with a feature loss only',
        distil(
            **{
                'student.roi_head.bbox_head.num_classes': 4,
                'losses': dict(_delete_=True, loss_kd=dict(type='CWD', student='neck')),
            }
        ),
        ('model.student.roi_head.bbox_head.num_classes: must be 3', 'got 4'),
    ),
    Fault(
        NUMBER,
        '`num_classes` is a string',
        model('roi_head.bbox_head.num_classes', '3'),
        ('model: cannot be built: TypeError: ',),
    ),
    Fault(
        NAMES,
        'no `metainfo` with custom classes',
        both(own_names, model('roi_head.bbox_head.num_classes', 80), of_all('categories', x=1)),
        ('metainfo.classes: not given', 'cat, dog, person', "set it to ('cat', 'dog', 'person')"),
    ),
    Fault(
        NAMES,
        '`CLASSES` instead of `classes`',
        lambda case: case.for_all(metainfo=dict(CLASSES=CLASSES)),
        ('train_dataloader.dataset.metainfo.CLASSES: ', 'the key must be classes', 'rename it'),
    ),
    Fault(
        NAMES,
        '`classes` outside `metainfo`, as in MMDetection 2',
        lambda case: case.train.update(classes=CLASSES),
        ('train_dataloader.dataset.classes: ', 'no such option', 'metainfo=dict(classes='),
    ),
    Fault(
        NAMES,
        "`classes=('person')` without the comma",
        both(lambda case: case.for_all(metainfo=dict(classes='person'))),
        ('metainfo.classes: must be a tuple', "got the string 'person'", "('person',)"),
    ),
    Fault(
        NAMES,
        'a name differs in case from the annotation file',
        classes('cat', 'dog', 'Person'),
        ("has no class 'Person'", "write 'person'"),
    ),
    Fault(
        NAMES,
        'a name differs in case from the XML files',
        classes('Dog', 'tvmonitor'),
        ('train.txt has no class', "'Dog'", "write 'dog'"),
        form='voc',
    ),
    Fault(
        NAMES,
        'a name has a space that the XML files do not have',
        classes('dog', 'tv monitor'),
        ("'tv monitor'", "write 'tvmonitor'"),
        form='voc',
    ),
    Fault(
        NAMES,
        'none of the names is in the XML files',
        classes('horse', 'sheep'),
        ('has none of horse, sheep', 'dog, tvmonitor'),
        form='voc',
    ),
    Fault(
        NAMES,
        'a misspelled name',
        classes('cat', 'dgo', 'person'),
        ("has no class 'dgo'", 'near: dog'),
    ),
    Fault(
        NAMES,
        'a name is listed twice',
        classes('cat', 'cat', 'person'),
        ("'cat' is listed twice",),
    ),
    Fault(
        NAMES,
        '`metainfo` on the wrapper instead of the data set',
        wrapped,
        (
            'train_dataloader.dataset.metainfo: RepeatDataset does not pass metainfo',
            'dataset.metainfo',
        ),
    ),
    Fault(
        NAMES,
        'all images are below `filter_cfg.min_size`',
        lambda case: case.train.update(filter_cfg=dict(min_size=320)),
        ('train_dataloader.dataset.filter_cfg.min_size: must be at most 96 px', 'got 320'),
    ),
    Fault(
        NAMES,
        'the same with XML files',
        lambda case: case.train.update(filter_cfg=dict(min_size=320)),
        ('train_dataloader.dataset.filter_cfg.min_size: must be at most 120 px', 'got 320'),
        form='voc',
    ),
    Fault(
        NAMES,
        'no image contains the classes',
        lambda case: case.edit(lambda it: it.update(annotations=[])),
        ('no image of', 'contains cat, dog, person'),
    ),
    Fault(
        NAMES,
        'the data set type is not registered',
        lambda case: case.train.update(type='MyDataset'),
        (
            "train_dataloader.dataset.type: 'MyDataset' is not a registered data set",
            'custom_imports',
        ),
    ),
    Fault(
        NAMES,
        'some XML files have a name with a trailing space',
        voc_file('Annotations/2008_train_0.xml', lambda text: text.replace('>dog<', '>dog <')),
        ("objects called 'dog ' as well as 'dog'; 'dog ' is ignored",),
        form='voc',
        advice=True,
    ),
    Fault(
        NAMES,
        'two categories with the same name',
        lambda case: case.edit(lambda it: it['categories'].append(dict(id=9, name='cat'))),
        ("2 categories called 'cat'", 'rename one'),
    ),
    Fault(
        NAMES,
        'two categories with the same id',
        each('categories', lambda index, it: it.update(id=1)),
        ('categories must have unique ids, got 1 for cat and dog',),
    ),
    Fault(
        NAMES,
        'class names are numbers',
        classes(1, 2, 3),
        ('train_dataloader.dataset.metainfo.classes: names must be strings, got 1',),
    ),
    Fault(
        NAMES,
        'no class names',
        classes(),
        ('metainfo.classes: must name at least one class, got ()',),
    ),
    Fault(
        ORDER,
        'the annotation file lists the categories in another order',
        lambda case: case.edit(reorder),
        ('the order is', "write ('person', 'dog', 'cat')"),
    ),
    Fault(
        ORDER,
        'training and validation files list them in different orders',
        val_file(reorder),
        ('val_dataloader.dataset.metainfo.classes: the order is',),
    ),
    Fault(
        ORDER,
        'training and validation sets have different orders',
        both(
            val_file(reorder),
            lambda case: case.config.merge_from_dict(
                {
                    f'{mode}_dataloader.dataset.metainfo.classes': CLASSES[::-1]
                    for mode in ('val', 'test')
                }
            ),
        ),
        ('val_dataloader.dataset.metainfo.classes', 'must equal', 'in the same order'),
    ),
    Fault(
        ORDER,
        'training and validation sets have different classes',
        lambda case: case.config.val_dataloader.dataset.update(
            metainfo=dict(classes=('cat', 'dog'))
        ),
        ('val_dataloader.dataset.metainfo.classes', 'must equal train_dataloader'),
    ),
    Fault(
        ORDER,
        'the evaluator reads a file with another order',
        lambda case: (
            (
                val_file(reorder)(case),
                [
                    case.config[f'{mode}_dataloader'].dataset.update(ann_file='annotations.json')
                    for mode in ('val', 'test')
                ],
            )
            and None
        ),
        (
            'val_evaluator.ann_file: ',
            'must list the categories in the order of',
            'got person, dog, cat',
        ),
    ),
    Fault(
        ORDER,
        'a data set class has another order than the annotation file',
        lambda case: (
            [
                (
                    case.config[f'{mode}_dataloader'].dataset.update(type='ReversedDataset'),
                    case.config[f'{mode}_dataloader'].dataset.pop('metainfo'),
                )
                for mode in ('train', 'val', 'test')
            ]
            and None
        ),
        (
            'the order of ReversedDataset is',
            'but labels follow the order of',
            "write ('cat', 'dog', 'person')",
        ),
    ),
    Fault(
        BOXES,
        'coordinates between 0 and 1',
        boxes(lambda box, it: [v / s for v, s in zip(box, (128, 96, 128, 96), strict=True)]),
        ('boxes as fractions of the image (0 to 1)', 'multiply them by the width and height'),
    ),
    Fault(
        BOXES,
        'the same in XML files',
        both(
            xml(
                voc_object('dog', 0.1, 0.2, 0.5, 0.6),
                voc_object('tvmonitor', 0.5, 0.5, 1, 1),
                count=2,
            )
        ),
        ('boxes as fractions of the image (0 to 1)',),
        form='voc',
    ),
    Fault(
        BOXES,
        'corners instead of width and height',
        boxes(lambda box, it: [50, 40, 120, 90]),
        ('must have boxes as (x, y, width, height), got corners', 'subtract x1 from x2'),
    ),
    Fault(
        BOXES,
        'two boxes without width',
        boxes(lambda box, it: [box[0], box[1], 0, box[3]], count=2),
        ('2 of 12 boxes without an area on the image', 'annotation 1 on 0.png'),
        advice=True,
    ),
    Fault(
        BOXES,
        'a box without height in an XML file',
        xml(voc_object('dog'), voc_object('tvmonitor', 20, 30, 60, 30)),
        ('1 of 4 boxes without an area on the image', 'tvmonitor in', '2008_train_0.xml'),
        form='voc',
        advice=True,
    ),
    Fault(
        BOXES,
        'only boxes without an area',
        boxes(lambda box, it: [box[0], box[1], 0, 0]),
        ('only boxes without an area',),
    ),
    Fault(
        BOXES,
        'only boxes without an area, in XML files',
        both(xml(voc_object('dog', 20, 30, 20, 60), voc_object('tvmonitor', 9, 9, 9, 9), count=2)),
        ('only boxes without an area',),
        form='voc',
    ),
    Fault(
        BOXES,
        'a box outside of its image',
        boxes(lambda box, it: [200, 20, 30, 30], count=1),
        ('1 of 12 boxes without an area on the image',),
        advice=True,
    ),
    Fault(
        BOXES,
        'a box that extends beyond its image',
        boxes(lambda box, it: [100, 20, 90, 30], count=1),
        ('1 of 12 boxes that extend beyond the image', 'annotation 1 on 0.png'),
        advice=True,
    ),
    Fault(
        BOXES,
        'a coordinate that is not a number',
        boxes(lambda box, it: [float('nan'), 20, 9, 30], count=1),
        ('1 of 12 boxes with a coordinate that is not a number',),
    ),
    Fault(
        BOXES,
        'one image is rotated by its EXIF orientation',
        image(rotated),
        ('1 of 4 images are loaded with width and height swapped', 'color_ignore_orientation'),
        advice=True,
    ),
    Fault(
        BOXES,
        'all images are rotated by their EXIF orientation',
        rotate_all,
        ('4 of 4 images are loaded with width and height swapped', 'color_ignore_orientation'),
    ),
    Fault(
        BOXES,
        'images were resized after annotation',
        lambda case: [
            Image.new('RGB', (64, 48)).save(path)
            for path in (case.folder / 'data/images').iterdir()
        ],
        ('4 of 4 images have another size',),
    ),
    Fault(
        BOXES,
        'a box is not four numbers',
        each(
            'annotations', lambda index, it: it.update(bbox=it['bbox'][:3]) if index == 0 else None
        ),
        ("'bbox' of annotations must be four numbers", 'for id 1'),
    ),
    Fault(
        BOXES,
        'coordinates are strings',
        each('annotations', lambda index, it: it.update(bbox=[*map(str, it['bbox'])])),
        ("'bbox' of annotations must be four numbers", 'and 11 others'),
    ),
    Fault(
        BOXES,
        '`area` is null',
        of_all('annotations', area=None),
        ("'area' of annotations must be a number, got null",),
    ),
    Fault(
        BOXES,
        'all objects are crowds',
        of_all('annotations', iscrowd=1),
        ('all objects of', 'are marked as crowds'),
    ),
    Fault(
        BOXES,
        'all objects are difficult, in XML files',
        all_difficult,
        ('all objects of', 'or difficult'),
        form='voc',
    ),
    Fault(
        BOXES,
        'a decimal comma in an XML file',
        voc_file('Annotations/2008_train_0.xml', lambda text: text.replace('>21<', '>21,5<')),
        ('2008_train_0.xml cannot be read', "'21,5'", 'numeric xmin'),
        form='voc',
    ),
    Fault(
        BOXES,
        'coordinates in per cent of the image',
        per_cent,
        ('has all 12 boxes between 0 and 100', 'per cent'),
        advice=True,
    ),
    Fault(
        FILES,
        'the annotation file does not exist',
        lambda case: case.train.update(ann_file='train.json'),
        ('train_dataloader.dataset.ann_file: no such file: ', 'train.json'),
    ),
    Fault(
        FILES,
        'the validation file does not exist',
        both(val_file(lambda it: it), lambda case: (case.folder / 'data/val.json').unlink()),
        ('val_dataloader.dataset.ann_file: no such file: ', 'val.json'),
    ),
    Fault(
        FILES,
        'the images are in a subfolder of the image folder',
        move_images,
        (
            '4 of 4 images of',
            'do not exist',
            '0.png is in',
            'set train_dataloader.dataset.data_prefix.img',
        ),
    ),
    Fault(
        FILES,
        'file names with backslashes',
        both(
            move_images,
            file_names(lambda name: f'train\\{name}'),
        ),
        ('do not exist', 'separates folders by \\, write /'),
    ),
    Fault(
        FILES,
        'one image is missing',
        image(Path.unlink, '2.png'),
        ('1 of 4 images of', 'do not exist', '2.png', 'add the files, or remove them'),
    ),
    Fault(
        FILES,
        'one image is missing, with XML files',
        lambda case: (case.folder / 'data/VOC2012/JPEGImages/2008_train_1.jpg').unlink(),
        ('1 of 2 images of', 'do not exist', '2008_train_1.jpg'),
        form='voc',
    ),
    Fault(
        FILES,
        'one XML file is missing',
        lambda case: (case.folder / 'data/VOC2012/Annotations/2008_train_1.xml').unlink(),
        ('no such file:', '2008_train_1.xml', 'remove the name from the list'),
        form='voc',
    ),
    Fault(
        FILES,
        'an XML file is not XML',
        lambda case: (case.folder / 'data/VOC2012/Annotations/2008_train_1.xml').write_text('dog'),
        ('2008_train_1.xml cannot be read',),
        form='voc',
    ),
    Fault(
        FILES,
        'an XML file has an object without a box',
        xml('<object><name>dog</name></object>'),
        ('2008_train_0.xml cannot be read', 'each object needs a name and a bndbox'),
        form='voc',
    ),
    Fault(
        FILES,
        'an empty image',
        image(lambda path: path.write_bytes(b'') or None),
        ('1 of 4 images are empty or cannot be read', '0.png'),
    ),
    Fault(
        FILES,
        'a file is not an image',
        image(lambda path: path.write_text('<html>not found</html>') and None),
        ('1 of 4 images are empty or cannot be read', '0.png'),
    ),
    Fault(
        FILES,
        'annotations without `area`',
        without('annotations', 'area'),
        ("12 of 12 annotations have no 'area'", "set it to the box's width * height"),
    ),
    Fault(
        FILES,
        'annotations without `iscrowd`, which evaluation reads',
        without('annotations', 'iscrowd', 3),
        ("3 of 12 annotations have no 'iscrowd'", 'set it to 0'),
    ),
    Fault(
        FILES,
        'annotations without `bbox`',
        without('annotations', 'bbox', 1),
        ("1 of 12 annotations have no 'bbox'",),
    ),
    Fault(
        FILES,
        'images without `width`',
        without('images', 'width'),
        ("4 of 4 images have no 'width'", 'in pixels'),
    ),
    Fault(
        FILES,
        'no `categories`',
        lambda case: case.edit(lambda it: it.pop('categories') and None),
        ("must have a list 'categories'",),
    ),
    Fault(
        FILES,
        'a byte-order mark',
        raw(lambda content: b'\xef\xbb\xbf' + content),
        ('starts with a byte-order mark', 'save it as UTF-8 without a byte-order mark'),
    ),
    Fault(
        FILES,
        'a bare list',
        raw(lambda content: json.dumps(json.loads(content)['annotations']).encode()),
        ('must be an object with the keys images, annotations and categories, got a list',),
    ),
    Fault(
        FILES,
        'a truncated annotation file',
        raw(lambda content: content[: len(content) // 2]),
        ('annotations.json is not a JSON file',),
    ),
    Fault(
        FILES,
        'annotations refer to images that are not in the file',
        of_all('annotations', image_id=999),
        (
            'has 12 of 12 annotations with an unknown image_id',
            'image_id 999',
            'name the annotation file of these images',
        ),
    ),
    Fault(
        FILES,
        'image ids are numbers in `images` and strings in `annotations`',
        each('annotations', lambda _, it: it.update(image_id=str(it['image_id']))),
        ("image_id '0'); the file has 0 of type int; use one type",),
    ),
    Fault(
        FILES,
        'one annotation refers to an unknown category',
        each('annotations', lambda index, it: it.update(category_id=99) if index == 0 else None),
        (
            'has 1 of 12 annotations with an unknown category_id',
            'category_id 99',
            'they are ignored',
        ),
        advice=True,
    ),
    Fault(
        FILES,
        'two images with the same id',
        each('images', lambda index, it: it.update(id=1) if index < 2 else None),
        ('images must have unique ids, got 1 for 0.png and 1.png',),
    ),
    Fault(
        FILES,
        'an image is listed twice',
        each('images', lambda index, it: it.update(file_name='0.png') if index < 2 else None),
        ('lists 1 of 3 images more than once', '0.png'),
        advice=True,
    ),
    Fault(
        FILES,
        'the width of images is a string',
        of_all('images', width='128'),
        ('\'width\' of images must be a number of pixels, got "128"',),
    ),
    Fault(
        FILES,
        'a truncated image',
        image(cut),
        ('1 of 4 images are empty or cannot be read', '0.png'),
    ),
    Fault(
        FILES,
        'a Git LFS pointer instead of the annotation file',
        raw(lambda _: LFS_POINTER),
        ('annotations.json is not a JSON file; it is a Git LFS pointer',),
    ),
    Fault(
        FILES,
        'an empty annotation file',
        raw(lambda _: b''),
        ('annotations.json is not a JSON file; it is empty',),
    ),
    Fault(
        FILES,
        'the evaluator reads a file with other images',
        evaluator_of_other_images,
        ('val_evaluator.ann_file: ', 'must have the images of', '4 of 4'),
    ),
    Fault(
        FILES,
        '`data_prefix` is a string',
        lambda case: case.train.__setitem__('data_prefix', 'images/'),
        (
            "train_dataloader.dataset.data_prefix: must be a dict of folders, got 'images/'",
            "write dict(img='images/')",
        ),
    ),
    Fault(
        FILES,
        'a transform that is not registered',
        lambda case: case.train.pipeline.insert(2, dict(type='Rezise')),
        ("train_dataloader.dataset.pipeline: 'Rezise' is not registered; near: Resize",),
    ),
    Fault(
        FILES,
        'an image list with a second column',
        voc_file('ImageSets/Main/train.txt', lambda text: text.replace('_0', '_0 1')),
        ("a line must contain one name and nothing else, got '2008_train_0 1'",),
        form='voc',
    ),
    Fault(
        FILES,
        'an image list with file extensions',
        voc_file('ImageSets/Main/train.txt', lambda text: text.replace('_0', '_0.jpg')),
        ("names must have no file extension, got '2008_train_0.jpg'",),
        form='voc',
    ),
    Fault(
        FILES,
        'an image list with an empty line',
        voc_file('ImageSets/Main/train.txt', lambda text: text + '\n'),
        ('remove the empty line',),
        form='voc',
    ),
    Fault(
        FILES,
        'an image list with a byte-order mark',
        voc_file('ImageSets/Main/train.txt', str, 'utf-8-sig'),
        ('save the list as UTF-8 without a byte-order mark',),
        form='voc',
    ),
    Fault(
        FILES,
        'fewer images than one batch, with `drop_last`',
        fewer_images_than_a_batch,
        ('train_dataloader.batch_size: must be at most 4', 'drop_last=True, got 8'),
    ),
    Fault(
        FILES,
        'an image is a broken link',
        broken_link,
        ('1 of 4 images', '0.png is a link to nowhere.png, which does not exist'),
    ),
    Fault(
        FILES,
        'a file extension differs in case',
        other_ending,
        ('1 of 4 images', '0.PNG exists; write names in', 'in the same case'),
    ),
    Fault(
        FILES,
        'file names with a folder',
        file_names(lambda name: f'JPEGImages/{name}'),
        (
            '4 of 4 images',
            '0.png is in',
            'relative to the folder train_dataloader.dataset.data_prefix.img',
        ),
    ),
    Fault(
        FILES,
        'file names with the path of another machine',
        file_names(lambda name: f'C:\\\\data\\\\{name}'),
        ('4 of 4 images', '0.png is in', 'relative to the folder'),
    ),
    Fault(
        FILES,
        'PNG images in a VOC data set, which reads JPEG',
        lambda case: [
            path.rename(path.with_suffix('.png'))
            for path in (case.folder / 'data/VOC2012/JPEGImages').iterdir()
        ],
        ('2008_train_0.png exists, but VOCDataset reads only .jpg; convert the images',),
        form='voc',
    ),
    Fault(
        FILES,
        'file names with another extension',
        file_names(lambda name: name.replace('.png', '.jpg')),
        ('0.png exists; write names in', 'with the extension of the files'),
    ),
    Fault(
        FILES,
        'several annotation files for one data set',
        lambda case: case.train.__setitem__('ann_file', ['annotations.json', 'more.json']),
        ('train_dataloader.dataset.ann_file: must be one file, got 2', 'a ConcatDataset'),
    ),
    Fault(
        FILES,
        '`img_prefix`, as in MMDetection 2',
        lambda case: case.train.update(img_prefix=case.train.pop('data_prefix')['img']),
        ('train_dataloader.dataset.img_prefix: CocoDataset has no such', 'data_prefix=dict(img=…)'),
    ),
    Fault(
        FILES,
        'no `data_prefix`',
        lambda case: case.train.pop('data_prefix') and None,
        ('train_dataloader.dataset.data_prefix: must have the key img, got None',),
    ),
    Fault(
        FILES,
        'the validation file has no images',
        val_file(lambda it: it.update(images=[], annotations=[])),
        ('val_dataloader.dataset.ann_file: ', 'lists no images'),
    ),
    Fault(
        FILES,
        'the validation file has no objects',
        val_file(lambda it: it.update(annotations=[])),
        ('val_dataloader.dataset: no image of', 'accuracy cannot be measured'),
        advice=True,
    ),
    Fault(
        FILES,
        'the filter removes validation images',
        both(
            val_file(lambda it: it.update(annotations=it['annotations'][:9])),
            setting('val_dataloader.dataset.filter_cfg', dict(filter_empty_gt=True)),
        ),
        ('val_dataloader.dataset.test_mode: filter_cfg removes 1 of 4 images', 'test_mode=True'),
        advice=True,
    ),
    Fault(
        FILES,
        'a misspelled key of the file',
        raw(lambda text: text.replace(b'"images"', b'"image"')),
        ("must have a list 'images', got none; near: image",),
    ),
    Fault(
        PIPELINES,
        'no `PackDetInputs`',
        pipeline(lambda steps: steps[:-1]),
        (
            'train_dataloader.dataset.pipeline: must return inputs, got',
            "dict(type='PackDetInputs')",
        ),
    ),
    Fault(
        PIPELINES,
        'no `LoadAnnotations`',
        pipeline(lambda steps: steps.pop(1) and None),
        (
            'train_dataloader.dataset.pipeline: must return boxes and labels',
            "dict(type='LoadAnnotations'",
        ),
    ),
    Fault(
        PIPELINES,
        'transforms in the wrong order',
        pipeline(lambda steps: steps.insert(3, steps.pop())),
        ("train_dataloader.dataset.pipeline: RandomFlip fails: KeyError: 'img'",),
    ),
    Fault(
        PIPELINES,
        'a transform of MMDetection 2',
        pipeline(lambda steps: [*steps[:-1], dict(type='DefaultFormatBundle')]),
        (
            "pipeline: 'DefaultFormatBundle' is not registered; MMDetection 3 calls it PackDetInputs",
        ),
    ),
    Fault(
        PIPELINES,
        'an option of MMDetection 2',
        option(2, 'img_scale', 'scale'),
        ('pipeline: Resize has no option img_scale; MMDetection 3 calls it scale',),
    ),
    Fault(
        PIPELINES,
        'images are normalized by the pipeline and by the detector',
        pipeline(lambda steps: steps.insert(4, NORMALIZE)),
        ('returns normalized images', 'model.data_preprocessor normalizes them again'),
        advice=True,
    ),
    Fault(
        PIPELINES,
        'mean and std are for pixels from 0 to 1',
        model('data_preprocessor', dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])),
        (
            'model.data_preprocessor: mean and std are for pixels from 0 to 1',
            'multiply both by 255',
        ),
        advice=True,
    ),
    Fault(
        PIPELINES,
        'no `data_preprocessor`',
        lambda case: case.config.model.pop('data_preprocessor') and None,
        ('model.data_preprocessor: must be a dict, got None',),
    ),
    Fault(
        PIPELINES,
        '`Mosaic` without `MultiImageMixDataset`',
        pipeline(lambda steps: steps.insert(2, dict(type='Mosaic', img_scale=(128, 96)))),
        ('pipeline: Mosaic fails', 'move it to the pipeline of a MultiImageMixDataset'),
    ),
    Fault(
        PIPELINES,
        'a mask head, but no masks are loaded',
        both(with_masks, pipeline(lambda steps: steps[1].pop('with_mask') and None)),
        ('pipeline: must return masks for model.roi_head.mask_head', 'write with_mask=True'),
    ),
    Fault(
        PIPELINES,
        'one object has no segmentation',
        both(with_masks, without('annotations', 'segmentation', 1)),
        ('with_mask=True, but 1 of 12 objects', 'have no segmentation'),
    ),
    Fault(
        PIPELINES,
        'validation images without `scale_factor`',
        pipeline(lambda steps: steps[-1].update(meta_keys=('img_id', 'ori_shape')), 'val', 'test'),
        (
            'val_dataloader.dataset.pipeline: must return scale_factor, which model reads',
            'meta_keys of PackDetInputs',
        ),
    ),
    Fault(
        PIPELINES,
        'masks are evaluated, but the detector predicts none',
        setting('val_evaluator.metric', ['bbox', 'segm']),
        (
            "val_evaluator.metric: 'segm' needs a detector that predicts masks, got FasterRCNN; write 'bbox'",
        ),
    ),
    Fault(
        PIPELINES,
        '`CocoMetric` without an annotation file',
        setting('val_evaluator.ann_file', None),
        ('val_evaluator.ann_file: must be a file for CocoMetric, got None',),
    ),
    Fault(
        PIPELINES,
        '`CocoMetric` with XML files, without `instances`',
        setting('val_evaluator', dict(type='CocoMetric', ann_file=None, metric='bbox')),
        (
            'val_evaluator.ann_file: must be given to CocoMetric, got None',
            "add 'instances' to meta_keys of PackDetInputs in val_dataloader.dataset.pipeline",
        ),
        form='voc',
    ),
    Fault(
        TEACHERS,
        "the teacher's config does not exist",
        distil(**{'teacher.config': 'nowhere/teacher.py'}),
        ('nowhere/teacher.py', 'model.teacher.config'),
    ),
    Fault(
        TEACHERS,
        "the teacher's config has a syntax error",
        teacher_file('model = dict(\n'),
        ('teacher.config: ', 'teacher.py is not valid Python', 'line 1'),
    ),
    Fault(
        TEACHERS,
        "the teacher's config inherits from a missing file",
        teacher_file("_base_ = './absent.py'\n"),
        ('teacher.config: ', 'inherits from a file that is not there', 'absent.py'),
    ),
    Fault(
        TEACHERS,
        "the teacher's config has no `data_preprocessor`",
        teacher_without('data_preprocessor'),
        ('teacher.config: its model has no data_preprocessor', 'pixels from 0 to 255'),
        advice=True,
    ),
    Fault(
        TEACHERS,
        "the teacher's config imports a package that is not installed",
        teacher_file("custom_imports = dict(imports=['mmabsent'])\nmodel = dict(type='X')\n"),
        ('teacher.config: ', 'imports what cannot be imported', 'mmabsent'),
    ),
    Fault(
        TEACHERS,
        "the teacher's checkpoint does not exist",
        distil(**{'teacher.checkpoint': 'nowhere/teacher.pth'}),
        ('model.teacher.checkpoint: no such file: nowhere/teacher.pth',),
    ),
    Fault(
        TEACHERS,
        "keys of the teacher's checkpoint have a prefix",
        teacher_state(lambda state: {f'teacher.{key}': value for key, value in state.items()}),
        ("start with 'teacher.'", 'teacher.pth'),
        check_only=True,
    ),
    Fault(
        TEACHERS,
        "the teacher's checkpoint does not match the hash in its name",
        named_by_another_hash,
        ('model.teacher.checkpoint: the SHA-256 of', 'its name has 00000000', 'download it again'),
        advice=True,
    ),
    Fault(
        TEACHERS,
        'the student starts from a checkpoint of another detector',
        load_from(lambda state: {'head.weight': torch.zeros(3)}),
        ('load_from: ', 'has none of the', 'head.weight'),
    ),
    Fault(
        TEACHERS,
        "keys of the student's checkpoint have a prefix",
        load_from(lambda state: {f'ema.module.{key}': value for key, value in state.items()}),
        ('load_from: ', "its keys start with 'ema.module.'"),
    ),
    Fault(
        TEACHERS,
        'the student starts from a checkpoint with a few of its keys',
        load_from(lambda state: dict(list(state.items())[:9])),
        ('load_from: ', 'has 9 of the', 'are initialised randomly'),
        advice=True,
    ),
    Fault(
        TEACHERS,
        'pretrained weights at a URL that cannot be reached',
        model('backbone.init_cfg', dict(type='Pretrained', checkpoint='http://127.0.0.1:9/x.pth')),
        (
            'model.backbone.init_cfg.checkpoint: http://127.0.0.1:9/x.pth cannot be loaded',
            '=FILE',
        ),
    ),
    Fault(
        TEACHERS,
        "the teacher's config has a `default_scope` that is not installed",
        teacher_config(lambda text: text + "\ndefault_scope = 'mmyolo'\n"),
        ("teacher.config: default_scope='mmyolo' needs the package mmyolo",),
        check_only=True,
    ),
    Fault(
        TEACHERS,
        "the teacher's type is from a package that is not installed",
        teacher_config(lambda text: text.replace("'FasterRCNN'", "'mmyolo.YOLODetector'")),
        ("teacher.config: type 'mmyolo.YOLODetector' needs the package mmyolo",),
        check_only=True,
    ),
    Fault(
        TEACHERS,
        "the teacher's type is misspelled",
        teacher_config(lambda text: text.replace("'FasterRCNN'", "'FasterRCN'")),
        ("teacher.config: type 'FasterRCN' is not registered; near: FasterRCNN",),
        check_only=True,
    ),
    Fault(
        TEACHERS,
        "a Git LFS pointer instead of the student's weights",
        weights_file(LFS_POINTER),
        ('load_from=', "weights.pth' cannot be read; it is a Git LFS pointer"),
    ),
    Fault(
        TEACHERS,
        "a web page instead of the student's weights",
        weights_file(b'<!DOCTYPE html><html></html>'),
        ("weights.pth' cannot be read; it is a web page",),
    ),
    Fault(
        TEACHERS,
        'pretrained weights of another backbone',
        pretrained(lambda state: {f'blocks.{key}': value for key, value in state.items()}),
        ('model.backbone.init_cfg.checkpoint: ', 'has none of the', 'name weights of a ResNet'),
    ),
    Fault(
        TEACHERS,
        'pretrained weights with a few entries of the backbone',
        pretrained(lambda state: dict(list(state.items())[:9])),
        ('model.backbone.init_cfg.checkpoint: ', 'has 9 of the', 'are initialised randomly'),
        advice=True,
    ),
    Fault(
        TEACHERS,
        "the teacher's config is from a package that is not installed",
        distil(**{'teacher.config': 'mmyolo::yolov5/yolov5_s.py'}),
        (
            "model.teacher.config='mmyolo::yolov5/yolov5_s.py' needs the package mmyolo, which is not installed",
        ),
    ),
    Fault(
        TEACHERS,
        'a run resumes from a checkpoint with weights only',
        both(load_from(dict), setting('resume', True)),
        ('load_from: ', 'has no meta and no message_hub, so the run cannot resume', 'resume=False'),
    ),
    Fault(
        TEACHERS,
        "a run resumes from another detector's checkpoint",
        both(
            load_from(lambda state: {'head.weight': torch.zeros(3)}),
            setting('resume', True),
            lambda case: torch.save(
                dict(
                    torch.load(case.folder / 'weights.pth', weights_only=True),
                    meta=dict(epoch=1, iter=1),
                    message_hub=dict(log_scalars={'a': 1}),
                ),
                case.folder / 'weights.pth',
            ),
        ),
        ('load_from: ', 'has none of the', 'head.weight'),
    ),
    Fault(
        TEACHERS,
        '`pretrained`, as in MMDetection 2',
        model('pretrained', 'torchvision://resnet18'),
        ("argument 'pretrained'; MMDetection 3 reads backbone.init_cfg=dict(type='Pretrained'",),
    ),
    Fault(
        TEACHERS,
        'a teacher is not a dict',
        both(distil(), lambda case: case.config.model.__setitem__('teacher', 'teacher.py')),
        ('model.teacher: must be a dict, got a str; write dict(config=…, checkpoint=…)',),
    ),
    Fault(
        TEACHERS,
        'no student',
        both(distil(), lambda case: case.config.model.pop('student') and None),
        ('model.student: must be a dict, got None',),
    ),
    Fault(
        TEACHERS,
        '`from_teacher` names a module that the student does not have',
        distil(init_student=dict(from_teacher=['backbon'])),
        (
            "init_student.from_teacher: the student (FasterRCNN) has no module 'backbon'; near: back",
        ),
        check_only=True,
    ),
    Fault(
        LOSSES,
        'losses without names',
        both(distil(), lambda case: case.config.model.__setitem__('losses', [dict(type='CWD')])),
        ('model.losses: must be a dict, got a list',),
    ),
    Fault(
        LOSSES,
        'a negative weight',
        distil(**{'losses.loss_kd.loss_weight': -1.0}),
        (
            "losses.loss_kd.loss_weight: must be a number of at least 0, 'auto' or dict(ratio=…), got -1.0",
        ),
        check_only=True,
    ),
    Fault(
        LOSSES,
        'a loss schedule in epochs, a run in iterations',
        distil(**{'losses.loss_kd.schedule': dict(warmup=2)}),
        ("model.losses.loss_kd.schedule.unit: must be 'iter'", "write unit='iter'"),
    ),
    Fault(
        LOSSES,
        'a path that does not exist in the student',
        distil(**{'losses.loss_kd.student': 'roi_head.bbox_head.fc_clas'}),
        ('losses.loss_kd', 'fc_clas', 'near: '),
        check_only=True,
    ),
    Fault(
        OTHERS,
        'an optimizer that is not registered',
        setting('optim_wrapper.optimizer.type', 'SDG'),
        ("optim_wrapper.optimizer.type: 'SDG' is not registered; near: SGD",),
    ),
    Fault(
        OTHERS,
        'a metric that is not registered',
        setting('val_evaluator.type', 'CocoMetrc'),
        ("val_evaluator.type: 'CocoMetrc' is not registered; near: CocoMetric",),
    ),
    Fault(
        OTHERS,
        'a hook that is not registered',
        setting('custom_hooks', [dict(type='EMAHok')]),
        ("custom_hooks.0.type: 'EMAHok' is not registered; near: EMAHook",),
    ),
    Fault(
        OTHERS,
        'a sampler that is not registered',
        setting('train_dataloader.sampler.type', 'InfinitSampler'),
        (
            "train_dataloader.sampler.type: 'InfinitSampler' is not registered; near: InfiniteSampler",
        ),
    ),
    Fault(
        OTHERS,
        'an option that an optimizer does not have',
        setting('optim_wrapper.optimizer.learning_rate', 0.1),
        ('optim_wrapper.optimizer.learning_rate: SGD has no such option',),
    ),
    Fault(
        OTHERS,
        'a learning rate that is a string',
        setting('optim_wrapper.optimizer.lr', '1e-3'),
        ('optim_wrapper.optimizer: SGD cannot be built: TypeError',),
    ),
    Fault(
        OTHERS,
        'an option that a schedule does not have',
        setting('param_scheduler', [dict(type='MultiStepLR', by_epoch=False, steps=[1])]),
        ('param_scheduler.0: MultiStepLR cannot be built', "'steps'"),
    ),
    Fault(
        OTHERS,
        'a misspelled hook option that is used only after the first epoch',
        setting('default_hooks.checkpoint.max_keep_ckpt', 3),
        (
            'default_hooks.checkpoint.max_keep_ckpt: CheckpointHook has no such option; near: max_keep',
        ),
    ),
    Fault(
        OTHERS,
        'an invalid hook priority',
        setting('custom_hooks', [dict(type='EMAHook', priority='FIRST')]),
        ('custom_hooks.0.priority: must be an integer from 0 to 100 or one of HIGHEST', "'FIRST'"),
    ),
    Fault(
        OTHERS,
        '`save_best` names a score that is not measured',
        setting('default_hooks.checkpoint.save_best', 'bbox_mAP'),
        (
            'default_hooks.checkpoint.save_best: must be a score of val_evaluator',
            "got 'bbox_mAP'; write 'auto' or one of coco/bbox_mAP,",
        ),
    ),
    Fault(
        OTHERS,
        '`save_best` without a rule for its score',
        setting('default_hooks.checkpoint.save_best', 'pascal_voc/AP75'),
        ('default_hooks.checkpoint: CheckpointHook cannot be built', 'Cannot infer the rule'),
        form='voc',
    ),
    Fault(
        OTHERS,
        'a metric option with an unknown value',
        setting('val_evaluator.metric', 'mAP'),
        ('val_evaluator: CocoMetric cannot be built', 'got mAP'),
    ),
    Fault(
        OTHERS,
        'a visualizer backend that is not registered',
        setting('visualizer.vis_backends', [dict(type='TensorboardBackend')]),
        ("visualizer.vis_backends.0.type: 'TensorboardBackend' is not registered; near: Tensorb",),
    ),
    Fault(
        OTHERS,
        '`persistent_workers` without workers',
        setting('train_dataloader.persistent_workers', True),
        ('train_dataloader: ValueError: persistent_workers option needs num_workers > 0',),
    ),
    Fault(
        OTHERS,
        'an option of MMDetection 2 on a data loader',
        setting('train_dataloader.samples_per_gpu', 2),
        ("'samples_per_gpu'; MMDetection 3 calls samples_per_gpu batch_size",),
    ),
    Fault(
        OTHERS,
        'an infinite sampler in a run that counts epochs',
        both(
            setting('train_dataloader.sampler.type', 'InfiniteSampler'),
            lambda case: case.config.__setitem__('train_cfg', dict(by_epoch=True, max_epochs=1)),
        ),
        ('train_dataloader.sampler.type: InfiniteSampler never ends, so the epoch never ends',),
    ),
    Fault(
        OTHERS,
        'keys of MMDetection 2 and MMDetection 3 together',
        both(
            setting('runner', dict(type='EpochBasedRunner', max_epochs=1)),
            setting('lr_config', dict(policy='step', step=[8, 11])),
        ),
        (
            'keys of MMDetection 2 are ignored, got runner, lr_config; replace them with train_cfg, param_',
        ),
        advice=True,
    ),
    Fault(
        OTHERS,
        'training without an optimizer',
        lambda case: case.config.pop('optim_wrapper') and None,
        ('optim_wrapper: must be set together with train_dataloader and train_cfg',),
    ),
    Fault(
        OTHERS,
        'a misspelled parameter name in `custom_keys`',
        setting('optim_wrapper.paramwise_cfg', dict(custom_keys=dict(backbones=dict(lr_mult=0.1)))),
        ("custom_keys: no parameter of model has 'backbones' in its name; near: backbone",),
        advice=True,
    ),
    Fault(
        OTHERS,
        'a learning rate schedule in epochs, a run in iterations',
        setting('param_scheduler', [dict(type='MultiStepLR', milestones=[1], end=2)]),
        ('param_scheduler.0.by_epoch: must be False', 'write by_epoch=False'),
        advice=True,
    ),
    Fault(
        OTHERS,
        'a warm-up that is longer than the run',
        setting(
            'param_scheduler', [dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=500)]
        ),
        (
            'param_scheduler.0.end: must be at most 2, the number of iterations of this run, got 500',
        ),
        advice=True,
    ),
    Fault(
        OTHERS,
        'a learning rate schedule that ends above the learning rate',
        both(
            setting('auto_scale_lr', dict(enable=True, base_batch_size=256)),
            setting(
                'param_scheduler',
                [dict(type='CosineAnnealingLR', by_epoch=False, T_max=2, eta_min=0.0002)],
            ),
        ),
        ('param_scheduler.0.eta_min: must be below the learning rate, 7.8125e-05, got 0.0002',),
        advice=True,
    ),
    Fault(
        OTHERS,
        'milestones after the end of the run',
        setting('param_scheduler', [dict(type='MultiStepLR', by_epoch=False, milestones=[8, 11])]),
        (
            'param_scheduler.0.milestones: must be below 2, the number of iterations of this run, got [8, 11]',
        ),
        advice=True,
    ),
    Fault(
        OTHERS,
        'validation without a metric',
        lambda case: case.config.pop('val_evaluator') and None,
        ('val_evaluator: must be set together with val_dataloader and val_cfg',),
    ),
)


def identifiers() -> Iterator[str]:
    for fault in FAULTS:
        yield f'{fault.kind}: {fault.title}'
