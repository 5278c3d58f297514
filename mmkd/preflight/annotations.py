"""Read the annotation files of a data set through the data set's own code."""

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
from .files import inner_configs

# Larger data is not read before a run starts, except by a check of the whole data.
LARGE_FILE = 100e6  # bytes of a COCO file: about two seconds
LARGE_LIST = 5000  # XML files: about two seconds

# Data set options of MMDetection 2 and their replacements in MMDetection 3.
RENAMED_OPTIONS = dict(
    classes='metainfo=dict(classes=(…))',
    CLASSES='metainfo=dict(classes=(…))',
    img_prefix='data_prefix=dict(img=…)',
)
# Names in pipelines of MMDetection 2 and their replacements in MMDetection 3.
RENAMED_IN_PIPELINES = dict(
    img_scale='scale',
    flip_ratio='prob',
    DefaultFormatBundle='PackDetInputs',
    Collect='PackDetInputs',
    ImageToTensor='PackDetInputs',
    MultiScaleFlipAug='TestTimeAug',
)


class AnnotationFile(COCO):
    """mmdet's reader of COCO files with one clear message per fault and without segmentation masks.

    Masks take most of a file's memory; each is replaced by its box.
    """

    def __init__(self, annotation_file: str | None = None) -> None:
        super().__init__()
        if annotation_file is not None:
            self.dataset = read_coco(annotation_file)
            self.createIndex()

    def createIndex(self) -> None:  # noqa: N802  # pycocotools' name
        """Build the same index as pycocotools, without its three printed lines."""
        self.anns = {each['id']: each for each in self.dataset['annotations']}
        self.imgs = {each['id']: each for each in self.dataset['images']}
        self.cats = {each['id']: each for each in self.dataset['categories']}
        for each in self.dataset['annotations']:
            self.imgToAnns[each['image_id']].append(each)
            self.catToImgs[each['category_id']].append(each['image_id'])
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs  # mmdet's names


@dataclass
class Boxes:
    """Boxes as the annotation files contain them.

    Attributes:
        corners: x1, y1, x2, y2 in pixels, shape (N, 4).
        sizes: Width and height of the image of each box, shape (N, 2).
        name: Maps the index of a box to a description with its file and image.
        dropped: Whether the data set drops a box because of its area or size, shape (N,), bool.
    """

    corners: np.ndarray
    sizes: np.ndarray
    name: Callable[[int], str]
    dropped: np.ndarray


@dataclass
class AnnotatedData:
    """One data set of a run, without wrappers.

    Attributes:
        mode: ``train``, ``val`` or ``test``.
        key: Config key of the data set.
        config: Config of the data set.
        dataset_type: Class of the data set.
        dataset: The data set; :meth:`load` builds it and reads its annotations.
        built: The data set that the run has already built and read, if any.
        images: Images before the filter of the data set.
        kept: Images after the filter.
        coco: Content of the annotation file if it is a COCO file.
        sample: Maximum number of XML files that are read in addition to the data set; None for all.
    """

    mode: str
    key: str
    config: dict[str, Any]
    dataset_type: type
    dataset: Any = None
    built: Any = None
    images: list[dict] = field(default_factory=list)
    kept: list[dict] = field(default_factory=list)
    coco: dict[str, list[dict]] | None = None
    sample: int | None = None
    _objects: list[tuple[str, str, np.ndarray, tuple[int, int]]] | None = None

    @property
    def classes(self) -> Any:
        """Class names of the data set, after it has read its config."""
        return self.dataset.metainfo.get('classes')

    @property
    def path(self) -> str:
        """Path of the annotation file."""
        return self.dataset.ann_file

    @property
    def in_test_mode(self) -> bool:
        """Whether the data set has ``test_mode=True``; it then filters no images."""
        return bool(self.dataset.test_mode)

    @property
    def takes_text(self) -> bool:
        """Whether its detector reads class names as text and has no fixed class indices."""
        return bool(getattr(self.dataset, 'return_classes', False))

    @property
    def is_unlabelled(self) -> bool:
        """Whether its pipeline loads images without labels, as in semi-supervised training."""
        return 'LoadEmptyAnnotations' in str(self.config.get('pipeline'))

    @property
    def is_local(self) -> bool:
        """Whether its files are on a local disk."""
        return not self.config.get('backend_args') and '://' not in str(
            self.config.get('data_root') or ''
        )

    @property
    def is_read_whole(self) -> bool:
        """Whether :meth:`names_in_files` covers all files, not only a sample."""
        return self.coco is not None or self.sample is None or len(self.images) <= self.sample

    def is_large(self) -> bool:
        """Whether its annotations take so long to read that a run reads them only once."""
        path = _join(self.config.get('data_root'), self.config.get('ann_file'))
        if not path or not os.path.isfile(path):
            return False
        if issubclass(self.dataset_type, XMLDataset):
            with open(path, 'rb') as file:
                return sum(1 for _ in file) > LARGE_LIST
        return os.path.getsize(path) > LARGE_FILE

    def load(self) -> None:
        """Build the data set and read its annotations.

        Raises:
            UserError: The data set cannot be built or read; the message names key, file and cause.
        """
        config = dict(self.config, lazy_init=True)
        try:
            self.dataset = DATASETS.build(config)
            self._install_readers()
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
        except Exception as error:  # the data set may be the user's own class
            raise _config_error_from(error, self.key, self.config) from error

    def loaded_dataset(self) -> Any:
        """The data set as a run uses it, ready to be indexed."""
        if self.dataset is not self.built:
            self.dataset.data_list, self.dataset.serialize_data = self.kept, False
            self.dataset._fully_initialized = True
        return self.dataset

    def use_built(self) -> None:
        """Use the data set that the run has built and read; call it instead of :meth:`load`."""
        self.dataset = self.built
        self.images = self.kept = [self.built.get_data_info(i) for i in range(len(self.built))]

    def _install_readers(self) -> None:
        """Replace the file readers of the data set by ones with clear error messages."""
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
                        f'no such file: {error.filename}, listed in {dataset.ann_file}; '
                        f'{_image_list_hint(str(entry.get("img_id")))}'
                    ) from None
                except Exception as error:
                    how = '; each object needs a name and a bndbox with numeric xmin, ymin, xmax and ymax'
                    raise ConfigError(
                        f'{entry["xml_path"]} cannot be read: {describe_error(error)}'
                        f'{wrong_file_hint(entry["xml_path"]) or how}'
                    ) from None

            dataset.parse_data_info = parse_named

    def names_by_label(self) -> list[str] | None:
        """Class name in the annotation file of each label of the data set; None if unknown."""
        found = self.categories()
        if found is None:
            return None
        names = {each['id']: each['name'] for each in found}
        return [names[number] for number in self.dataset.cat_ids]

    def categories(self) -> list[dict] | None:
        """The categories of a COCO file; None if unknown.

        In a file too large to read, they are found only in its first or last megabyte.
        """
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
        """All class names in the annotation files, in file order; None if unknown."""
        categories = self.categories()
        if categories is not None:
            return [each['name'] for each in categories]
        if isinstance(self.dataset, XMLDataset):
            return list(dict.fromkeys(name for _, name, _, _ in self.objects()))
        return None

    def objects(self) -> list[tuple[str, str, np.ndarray, tuple[int, int]]]:
        """File, class name, corners and image size of each object in (a sample of) the XML files."""
        if self._objects is None:
            images = self.images
            count = min(self.sample or len(images), len(images))
            chosen = [images[len(images) * i // count] for i in range(count)]
            self._objects = [found for image in chosen for found in _objects_of(image)]
        return self._objects

    def boxes(self) -> Boxes:
        """The boxes of the data set's classes; spelling variants of the names match too."""
        names = {normalize_name(name) for name in self.classes}
        dropped = None
        if self.coco is not None:
            wanted = {
                each['id']
                for each in self.coco['categories']
                if normalize_name(each['name']) in names
            }
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
            dropped = (areas <= 0) | (corners[:, 2:] < 1).any(1)  # as CocoDataset does
            corners[:, 2:] += corners[:, :2]
            shown = [images[each['image_id']] for each in found]

            def name(index: int) -> str:
                return f'annotation {found[index]["id"]} on {shown[index]["file_name"]}'

            sizes = [(image['width'], image['height']) for image in shown]
        elif isinstance(self.dataset, XMLDataset):
            chosen = [one for one in self.objects() if normalize_name(one[1]) in names]
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

        if dropped is None:
            dropped = np.zeros(len(corners), dtype=bool)
        return Boxes(corners, np.array(sizes, dtype=float).reshape(-1, 2), name, dropped)


def normalize_name(name: str) -> str:
    """A class name in lower case, without spaces, hyphens and underscores."""
    return ''.join(letter for letter in str(name).casefold() if letter not in ' -_')


def iter_data(config: Any, mode: str) -> Iterator[AnnotatedData]:
    """The data sets of a data loader, including those inside wrappers.

    Raises:
        ConfigError: A data set or wrapper has an unknown type, or a wrapper has ``metainfo``.
    """
    section = f'{mode}_dataloader'
    yield from _iter_data((config.get(section) or {}).get('dataset'), f'{section}.dataset', mode)


def _iter_data(config: Any, key: str, mode: str) -> Iterator[AnnotatedData]:
    if not isinstance(config, dict):
        return
    kind = config.get('type')
    found = DATASETS.get(kind) if isinstance(kind, str) else kind
    if not isinstance(found, type):
        raise ConfigError(
            f'{key}.type: {kind!r} is not a registered data set'
            f'{did_you_mean(str(kind), DATASETS.module_dict)}; add the module of your own data set to '
            f'custom_imports'
        )
    inner = list(inner_configs(config))
    if not inner:
        yield AnnotatedData(mode, key, dict(config), found)
    for name, each in inner:
        if 'metainfo' in config:
            raise ConfigError(
                f'{key}.metainfo: {found.__name__} does not pass metainfo to the data set inside; write it '
                f'as {key}.{name}.metainfo'
            )
        yield from _iter_data(each, f'{key}.{name}', mode)


def rebuild_wrappers(config: dict[str, Any], leaves: Iterator[Any], key: str) -> Any:
    """Build the wrappers of a config around data sets that are already read.

    Args:
        config: Config of the outermost data set.
        leaves: The data sets that were read, in the order of :func:`iter_data`.
        key: Config key of the outermost data set.

    Raises:
        ConfigError: A wrapper cannot be built.
    """
    inner = dict(inner_configs(config))
    if not inner:
        return next(leaves)
    built = {name: rebuild_wrappers(each, leaves, f'{key}.{name}') for name, each in inner.items()}
    made = {name: dict(type=lambda found=found: found) for name, found in built.items()}
    wrapper = dict(config)
    for name in {each.partition('.')[0] for each in made}:
        several = [each for key, each in made.items() if key.startswith(f'{name}.')]
        wrapper[name] = several or made[name]
    try:
        return DATASETS.build(wrapper)
    except Exception as error:
        raise _config_error_from(error, key, config) from error


def unwrapped_datasets(dataset: Any) -> list[Any]:
    """The data sets inside a built wrapper, in the order of :func:`iter_data`; itself if it is no wrapper."""
    if hasattr(dataset, 'datasets'):
        return [leaf for each in dataset.datasets for leaf in unwrapped_datasets(each)]
    return unwrapped_datasets(dataset.dataset) if hasattr(dataset, 'dataset') else [dataset]


def _objects_of(image: dict) -> Iterator[tuple[str, str, np.ndarray, tuple[int, int]]]:
    path = image['xml_path']
    root = ElementTree.parse(path).getroot()
    for each in root.findall('object'):
        box = each.find('bndbox')
        if box is None:  # only allowed for classes that the data set does not read
            continue
        corners = [float(box.findtext(edge) or 'nan') for edge in ('xmin', 'ymin', 'xmax', 'ymax')]
        size = (image['width'], image['height'])
        # VOC files count pixels from 1.
        yield path, each.findtext('name') or '', np.array(corners) - 1, size


def _config_error_from(error: Exception, key: str, config: dict) -> UserError:
    """Convert an exception of a data set's code to a one-line error that names the data set."""
    name, _, rest = str(error).partition('.__init__() ')
    wrong = rest.partition('unexpected keyword argument ')[2].strip("'")
    if isinstance(error, TypeError) and wrong:
        transform = TRANSFORMS.get(name)
        if isinstance(transform, type):
            hint = rename_hint(wrong, inspect.signature(transform).parameters)
            return ConfigError(
                f'{key}.pipeline: {name} has no option {wrong}{hint or "; remove it"}'
            )
        now = RENAMED_OPTIONS.get(wrong)
        hint = f'write {key}.{now}' if now else 'remove it'
        return ConfigError(f'{key}.{wrong}: {config.get("type")} has no such option; {hint}')
    absent = unregistered(error)
    if absent is not None:
        return ConfigError(
            f'{key}.pipeline: {absent!r} is not registered{rename_hint(absent, TRANSFORMS.module_dict)}; '
            f'add the module of your own transform to custom_imports'
        )
    if isinstance(error, KeyError) and error.args == ('img',):
        return ConfigError(
            f'{key}.data_prefix: must have the key img, got {config.get("data_prefix")}; write '
            f'dict(img=…) with the folder of the images'
        )
    return ConfigError(
        f'{key}: {config.get("type")} cannot read its annotations: {describe_error(error)}'
    )


def rename_hint(name: str, known: Collection[str]) -> str:
    """The MMDetection 3 name of an MMDetection 2 name, or similar known names, as a clause; may be empty."""
    now = RENAMED_IN_PIPELINES.get(name, '')
    return f'; MMDetection 3 calls it {now}' if now in known else did_you_mean(name, known)


def _image_list_hint(name: str) -> str:
    """How to correct a line of an image list that names no file."""
    if not name:
        return 'remove the empty line'
    if name.startswith('\ufeff'):
        return 'save the list as UTF-8 without a byte-order mark'
    if len(name.split()) > 1:
        return f'a line must contain one name and nothing else, got {name!r}'
    if name.lower().endswith(('.jpg', '.jpeg', '.png', '.xml')):
        return f'names must have no file extension, got {name!r}'
    return 'add the file, or remove the name from the list'


def describe_error(error: BaseException) -> str:
    """The class and the message of an exception in one line of at most 200 characters of message."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return f'{type(error).__name__}: {" ".join(lines)[:200]}' if lines else type(error).__name__


def _join(*parts: str | None) -> str:
    return os.path.join(*(part for part in parts if part)) if any(parts) else ''
