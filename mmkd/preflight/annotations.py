"""What the annotation files of a data set hold, read by the data set's own code."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

import numpy as np
from mmdet.datasets import CocoDataset, XMLDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS, TRANSFORMS

from ..building import unregistered
from ..errors import ConfigError, MissingFileError, UserError, did_you_mean
from ..file_kind import wrong_file_hint
from .coco_file import categories_at_an_end, read_coco
from .files import inner_of

# What is not read before a run starts, unless a check of the whole data is asked for.
LARGE_FILE = 100e6  # bytes of a COCO file: about two seconds
LARGE_LIST = 5000  # XML files: about two seconds

# Options of data sets of MMDetection 2, and what became of them.
OPTIONS_NOW = dict(
    classes='metainfo=dict(classes=(…))',
    CLASSES='metainfo=dict(classes=(…))',
    img_prefix='data_prefix=dict(img=…)',
)
# Names in pipelines of MMDetection 2, and what they became.
NAMES_NOW = dict(
    img_scale='scale',
    flip_ratio='prob',
    DefaultFormatBundle='PackDetInputs',
    Collect='PackDetInputs',
    ImageToTensor='PackDetInputs',
    MultiScaleFlipAug='TestTimeAug',
)


class AnnotationFile(COCO):
    """mmdet's reader of COCO files, without outlines, and with a message for each fault of a file.

    Outlines of objects are most of a file's size in memory; their boxes stand in for them.
    """

    def __init__(self, annotation_file: str | None = None) -> None:
        super().__init__()
        if annotation_file is not None:
            self.dataset = read_coco(annotation_file)
            self.createIndex()

    def createIndex(self) -> None:  # noqa: N802  # pycocotools' name
        """As pycocotools does, which prints three lines."""
        self.anns = {each['id']: each for each in self.dataset['annotations']}
        self.imgs = {each['id']: each for each in self.dataset['images']}
        self.cats = {each['id']: each for each in self.dataset['categories']}
        for each in self.dataset['annotations']:
            self.imgToAnns[each['image_id']].append(each)
            self.catToImgs[each['category_id']].append(each['image_id'])
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs  # mmdet's names


@dataclass
class Boxes:
    """The boxes of some images as their files give them.

    ``corners`` are x1, y1, x2, y2 in pixels, shape (N, 4); ``sizes`` the width and height of the image of
    each, shape (N, 2); ``name`` returns file and image of one.
    """

    corners: np.ndarray
    sizes: np.ndarray
    name: Callable[[int], str]
    #: Those that the data set leaves out whatever their place, shape (N,), bool.
    left_out: np.ndarray


@dataclass
class AnnotatedData:
    """One data set that a run reads.

    Attributes:
        mode: ``train``, ``val`` or ``test``.
        key: Its key in the config.
        config: Its config.
        kind: Its class.
    """

    mode: str
    key: str
    config: dict[str, Any]
    kind: type
    #: The data set; its annotations are read by :meth:`load`.
    dataset: Any = None
    #: The one that the run has built and read, if it has.
    built: Any = None
    #: Its images before it filters them, and after.
    images: list[dict] = field(default_factory=list)
    kept: list[dict] = field(default_factory=list)
    #: The content of its file in COCO's form.
    coco: dict[str, list[dict]] | None = None
    #: Number of XML files to read beside the data set, at most.
    sample: int | None = None
    _objects: list[tuple[str, str, np.ndarray, tuple[int, int]]] | None = None

    @property
    def classes(self) -> Any:
        """The class names of the data set, as it understands its config."""
        return self.dataset.metainfo.get('classes')

    @property
    def path(self) -> str:
        """Its annotation file."""
        return self.dataset.ann_file

    @property
    def in_test_mode(self) -> bool:
        return bool(self.dataset.test_mode)

    @property
    def takes_text(self) -> bool:
        """Whether its detector is given the class names as text, and has no numbering of its own."""
        return bool(getattr(self.dataset, 'return_classes', False))

    @property
    def is_unlabelled(self) -> bool:
        """Whether its pipeline takes images without labels, as in semi-supervised training."""
        return 'LoadEmptyAnnotations' in str(self.config.get('pipeline'))

    @property
    def is_local(self) -> bool:
        """Whether its files lie on a disk of this machine."""
        return not self.config.get('backend_args') and '://' not in str(
            self.config.get('data_root') or ''
        )

    @property
    def is_read_whole(self) -> bool:
        """Whether all class names of the files are known."""
        return self.coco is not None or self.sample is None or len(self.images) <= self.sample

    def is_large(self) -> bool:
        """Whether reading its annotations takes long enough to be done only once in a run."""
        path = _join(self.config.get('data_root'), self.config.get('ann_file'))
        if not path or not os.path.isfile(path):
            return False
        if issubclass(self.kind, XMLDataset):
            with open(path, 'rb') as file:
                return sum(1 for _ in file) > LARGE_LIST
        return os.path.getsize(path) > LARGE_FILE

    def load(self) -> None:
        """Build the data set and read its annotations.

        Raises:
            UserError: It cannot be built or read; the message names key, file and cause.
        """
        config = dict(self.config, lazy_init=True)
        try:
            self.dataset = DATASETS.build(config)
            self._prepare_reading()
            self.dataset.data_list = self.images = self.dataset.load_data_list()
            if self.dataset.proposal_file is not None:
                self.dataset.load_proposals()
            if hasattr(self.dataset, 'COCOAPI'):
                self.dataset.__dict__.pop('COCOAPI', None)
            self.kept = self.dataset.filter_data()
        except UserError as error:
            if not str(error).startswith(self.key):
                error.args = (f'{self.key}: {error}',)
            raise
        except Exception as error:  # of the data set's own code, which may be the user's
            raise _naming(error, self.key, self.config) from error

    def as_read(self) -> Any:
        """The data set as a run has it, with images to take from it."""
        if self.dataset is not self.built:
            self.dataset.data_list, self.dataset.serialize_data = self.kept, False
            self.dataset._fully_initialized = True
        return self.dataset

    def use_built(self) -> None:
        """Take the data set that the run has built and read, instead of :meth:`load`."""
        self.dataset = self.built
        self.images = self.kept = [self.built.get_data_info(i) for i in range(len(self.built))]

    def _prepare_reading(self) -> None:
        dataset = self.dataset
        if isinstance(dataset, CocoDataset) and type(dataset).COCOAPI is COCO:

            def read(path: str) -> AnnotationFile:
                file = AnnotationFile(path)
                self.coco = file.dataset
                return file

            dataset.COCOAPI = read
        if isinstance(dataset, XMLDataset):
            parse = dataset.parse_data_info

            def parse_named(entry: dict) -> Any:
                try:
                    return parse(entry)
                except FileNotFoundError as error:
                    raise MissingFileError(
                        f'no such file: {error.filename}, of {dataset.ann_file}; '
                        f'{_about_name(str(entry.get("img_id")))}'
                    ) from None
                except Exception as error:
                    how = '; each object needs name and bndbox with xmin, ymin, xmax and ymax, as numbers'
                    raise ConfigError(
                        f'{entry["xml_path"]} cannot be read: {words_of(error)}'
                        f'{wrong_file_hint(entry["xml_path"]) or how}'
                    ) from None

            dataset.parse_data_info = parse_named

    def names_by_label(self) -> list[str] | None:
        """The name in the annotation file of each label that the data set gives; None if unknown."""
        found = self.categories()
        if found is None:
            return None
        names = {each['id']: each['name'] for each in found}
        return [names[number] for number in self.dataset.cat_ids]

    def categories(self) -> list[dict] | None:
        """The categories of a COCO file; those of a large one, if they stand at its beginning or end."""
        if self.coco is not None:
            return self.coco['categories']
        if (
            isinstance(self.dataset, CocoDataset)
            and type(self.dataset).COCOAPI is COCO
            and self.is_local
        ):
            return categories_at_an_end(self.path)
        return None

    def names_in_files(self) -> list[str] | None:
        """All class names in the annotation files, in their order; None if unknown."""
        categories = self.categories()
        if categories is not None:
            return [each['name'] for each in categories]
        if isinstance(self.dataset, XMLDataset):
            return list(dict.fromkeys(name for _, name, _, _ in self.objects()))
        return None

    def objects(self) -> list[tuple[str, str, np.ndarray, tuple[int, int]]]:
        """File, class name, corners and image size of the objects in (a sample of) the XML files."""
        if self._objects is None:
            images = self.images
            count = min(self.sample or len(images), len(images))
            chosen = [images[len(images) * i // count] for i in range(count)]
            self._objects = [found for image in chosen for found in _objects_of(image)]
        return self._objects

    def boxes(self) -> Boxes:
        """The boxes of its classes as the files give them, however the names are spelled."""
        names = {bare(name) for name in self.classes}
        left_out = None
        if self.coco is not None:
            wanted = {each['id'] for each in self.coco['categories'] if bare(each['name']) in names}
            images = {each['id']: each for each in self.coco['images']}
            found = [
                each
                for each in self.coco['annotations']
                if each['category_id'] in wanted
                and each['image_id'] in images
                and len(each.get('bbox', ())) == 4
            ]
            corners = np.array([each['bbox'] for each in found], dtype=float).reshape(-1, 4)
            areas = np.array([each.get('area', 1) for each in found], dtype=float)
            left_out = (areas <= 0) | (corners[:, 2:] < 1).any(1)  # as CocoDataset does
            corners[:, 2:] += corners[:, :2]
            shown = [images[each['image_id']] for each in found]

            def name(index: int) -> str:
                return f'annotation {found[index]["id"]} on {shown[index]["file_name"]}'

            sizes = [(image['width'], image['height']) for image in shown]
        elif isinstance(self.dataset, XMLDataset):
            chosen = [one for one in self.objects() if bare(one[1]) in names]
            corners = np.array([one[2] for one in chosen], dtype=float).reshape(-1, 4)
            sizes = [one[3] for one in chosen]

            def name(index: int) -> str:
                return f'{chosen[index][1]} in {chosen[index][0]}'

        else:
            pairs = [
                (instance['bbox'], image)
                for image in self.images
                for instance in image.get('instances', ())
                if len(instance.get('bbox', ())) == 4
            ]
            corners = np.array([box for box, _ in pairs], dtype=float).reshape(-1, 4)
            sizes = [(image.get('width', 0), image.get('height', 0)) for _, image in pairs]

            def name(index: int) -> str:
                return f'a box on {pairs[index][1]["img_path"]}'

        if left_out is None:
            left_out = np.zeros(len(corners), dtype=bool)
        return Boxes(corners, np.array(sizes, dtype=float).reshape(-1, 2), name, left_out)


def bare(name: str) -> str:
    """A class name without what its spellings differ in: case, spaces, hyphens and underscores."""
    return ''.join(letter for letter in str(name).casefold() if letter not in ' -_')


def data_of(config: Any, mode: str) -> Iterator[AnnotatedData]:
    """The data sets that a data loader of a config reads, those in wrappers too.

    Raises:
        ConfigError: A data set or a wrapper of no known type, or a wrapper with an option it does not have.
    """
    section = f'{mode}_dataloader'
    yield from _leaves((config.get(section) or {}).get('dataset'), f'{section}.dataset', mode)


def _leaves(config: Any, key: str, mode: str) -> Iterator[AnnotatedData]:
    if not isinstance(config, dict):
        return
    kind = config.get('type')
    found = DATASETS.get(kind) if isinstance(kind, str) else kind
    if not isinstance(found, type):
        raise ConfigError(
            f'{key}.type: {kind!r} is not a registered data set'
            f'{did_you_mean(str(kind), DATASETS.module_dict)}; a data set of your own needs custom_imports'
        )
    inner = list(inner_of(config))
    if not inner:
        yield AnnotatedData(mode, key, dict(config), found)
    for name, each in inner:
        if 'metainfo' in config:
            raise ConfigError(
                f'{key}.metainfo: {found.__name__} passes no metainfo on to the data set inside; write it as '
                f'{key}.{name}.metainfo'
            )
        yield from _leaves(each, f'{key}.{name}', mode)


def wrap(config: dict[str, Any], leaves: Iterator[Any], key: str) -> Any:
    """The data set of a config around data sets that are read already, in the order of :func:`data_of`.

    Raises:
        ConfigError: A wrapper cannot be built.
    """
    inner = dict(inner_of(config))
    if not inner:
        return next(leaves)
    built = {name: wrap(each, leaves, f'{key}.{name}') for name, each in inner.items()}
    made = {name: dict(type=lambda found=found: found) for name, found in built.items()}
    wrapper = dict(config)
    for name in {each.partition('.')[0] for each in made}:
        several = [each for key, each in made.items() if key.startswith(f'{name}.')]
        wrapper[name] = several or made[name]
    try:
        return DATASETS.build(wrapper)
    except Exception as error:
        raise _naming(error, key, config) from error


def leaves_of(dataset: Any) -> list[Any]:
    """The data sets that a built one wraps, in the order of :func:`data_of`; itself if it wraps none."""
    if hasattr(dataset, 'datasets'):
        return [leaf for each in dataset.datasets for leaf in leaves_of(each)]
    return leaves_of(dataset.dataset) if hasattr(dataset, 'dataset') else [dataset]


def _objects_of(image: dict) -> Iterator[tuple[str, str, np.ndarray, tuple[int, int]]]:
    path = image['xml_path']
    root = ElementTree.parse(path).getroot()
    for each in root.findall('object'):
        box = each.find('bndbox')
        if box is None:  # of a class that the data set does not read
            continue
        corners = [float(box.findtext(edge) or 'nan') for edge in ('xmin', 'ymin', 'xmax', 'ymax')]
        size = (image['width'], image['height'])
        # As a distance between edges: in VOC's files pixels are counted from 1.
        yield path, each.findtext('name') or '', np.array(corners) - 1, size


def _naming(error: Exception, key: str, config: dict) -> UserError:
    """An exception of a data set's own code as a line that names the data set."""
    name, _, rest = str(error).partition('.__init__() ')
    wrong = rest.partition('unexpected keyword argument ')[2].strip("'")
    if isinstance(error, TypeError) and wrong:
        transform = TRANSFORMS.get(name)
        if isinstance(transform, type):
            hint = renamed(wrong, inspect.signature(transform).parameters)
            return ConfigError(
                f'{key}.pipeline: {name} has no option {wrong}{hint or "; take it out"}'
            )
        now = OPTIONS_NOW.get(wrong)
        hint = f'write {key}.{now}' if now else 'take it out'
        return ConfigError(f'{key}.{wrong}: {config.get("type")} has no such option; {hint}')
    absent = unregistered(error)
    if absent is not None:
        return ConfigError(
            f'{key}.pipeline: {absent!r} is not registered{renamed(absent, TRANSFORMS.module_dict)}; a '
            f'transform of your own needs custom_imports'
        )
    if isinstance(error, KeyError) and error.args == ('img',):
        return ConfigError(
            f'{key}.data_prefix: must have the key img, got {config.get("data_prefix")}; write '
            f'dict(img=…) with the folder of the images'
        )
    return ConfigError(
        f'{key}: {config.get("type")} cannot read its annotations: {words_of(error)}'
    )


def renamed(name: str, known: Collection[str]) -> str:
    """A hint at what a name of MMDetection 2 is called now, or at names near it; may be empty."""
    now = NAMES_NOW.get(name, '')
    return f'; MMDetection 3 calls it {now}' if now in known else did_you_mean(name, known)


def _about_name(name: str) -> str:
    """What to do about a line of a list of images that names no file."""
    if not name:
        return 'take the empty line out'
    if name.startswith('\ufeff'):
        return 'save the list as UTF-8 without a byte-order mark'
    if len(name.split()) > 1:
        return f'a line must hold a name and nothing else, got {name!r}'
    if name.lower().endswith(('.jpg', '.jpeg', '.png', '.xml')):
        return f'names must have no ending, got {name!r}'
    return 'add it, or take the name out of the list'


def words_of(error: BaseException) -> str:
    """An exception in one line."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return f'{type(error).__name__}: {" ".join(lines)[:200]}' if lines else type(error).__name__


def _join(*parts: str | None) -> str:
    return os.path.join(*(part for part in parts if part)) if any(parts) else ''
