"""docs/get_started/own_data.md: its files and commands, in its order, on small synthetic data of both forms.

The weights that the page downloads are random ones of the same configs, images and runs are small.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import mmdet
import pytest
from mmdet.datasets import CocoDataset
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.hub import get_config
from PIL import Image
from tiny_models import save_teacher
from tiny_training import write_coco

DOCS = Path(__file__).parents[1] / 'docs'
PAGE = DOCS / 'get_started/own_data.md'
CLASSES = ('person', 'lorry', 'helmet')
FORMS = {"COCO's form": 'coco', "Pascal VOC's form": 'voc'}
FENCE = re.compile(r'^```(\w*)\n(.*?)^```$', re.M | re.S)
# Where the configs have the size of images: of each pipeline the transforms and their arguments.
SIZES = {
    'train_dataloader.dataset.pipeline': {
        **{2: 'img_scale', 3: 'scale', 4: 'crop_size', 7: 'size', 8: 'img_scale'}
    },
    'custom_hooks.1.switch_pipeline': {2: 'scale', 3: 'crop_size', 6: 'size'},
    'val_dataloader.dataset.pipeline': {1: 'scale', 2: 'size'},
    'test_dataloader.dataset.pipeline': {1: 'scale', 2: 'size'},
}


@dataclass
class Block:
    """A fenced block of the page: its language, its text, and what stands before it."""

    language: str
    text: str
    heading: str
    before: str

    @property
    def file(self) -> str:
        """The file that it is written to, which the sentence before it names last."""
        return re.findall(r'`(\w+\.py)`', self.before)[-1]


def blocks() -> Iterator[Block]:
    text = PAGE.read_text(encoding='utf-8')
    for found in FENCE.finditer(text):
        before = text[: found.start()]
        (*_, heading) = re.findall(r'^#+ (.*)$', FENCE.sub('', before), re.M)
        yield Block(found[1], found[2], heading, before.strip().rpartition('\n\n')[2])


BLOCKS = list(blocks())
URLS = sorted({url for block in BLOCKS for url in re.findall(r"'(https://[^']*)'", block.text)})


def commands(heading: str) -> list[list[str]]:
    """The words of each command below a heading."""
    texts = [it.text for it in BLOCKS if (it.language, it.heading) == ('bash', heading)]
    return [shlex.split(line) for text in texts for line in text.splitlines()]


# ---------------------------------------------------------------------- what stands in for the reader's


@pytest.fixture(scope='module')
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Random weights for each URL, of the config that the page names with it."""
    folder = tmp_path_factory.mktemp('weights')
    found = {}
    for url in URLS:
        config = get_config(f'mmdet::rtmdet/{url.rsplit("/", 2)[1]}.py')
        path = folder / url.rsplit('/', 1)[1].replace('-', '_')  # its hash is not this file's
        save_teacher(path, config.model, CocoDataset.METAINFO['classes'])
        found[url] = str(path)
    return found


def write_data(root: Path, form: str) -> None:
    """Eight images to train on and four to validate on, laid out as the page says."""
    for split, images in (('train', 8), ('val', 4)):
        drawn = write_coco(root / 'drawn', images, CLASSES)
        if form == 'coco':
            (root / 'annotations').mkdir(exist_ok=True)
            (drawn / 'annotations.json').rename(root / f'annotations/{split}.json')
            (drawn / 'images').rename(root / split)
        else:
            write_xml(root, split, drawn)
        shutil.rmtree(drawn)


def write_xml(root: Path, split: str, drawn: Path) -> None:
    """The same in Pascal VOC's form."""
    for folder in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (root / folder).mkdir(parents=True, exist_ok=True)
    content = json.loads((drawn / 'annotations.json').read_text())
    names = []
    for image in content['images']:
        names.append(f'{split}_{image["id"]}')
        with Image.open(drawn / 'images' / image['file_name']) as pixels:
            pixels.save(root / f'JPEGImages/{names[-1]}.jpg')
        node = ElementTree.Element('annotation')
        add(node, 'size', width=image['width'], height=image['height'], depth=3)
        for each in content['annotations']:
            if each['image_id'] == image['id']:
                x, y, width, height = each['bbox']
                thing = add(node, 'object', name=CLASSES[each['category_id'] - 1])
                add(thing, 'bndbox', xmin=x + 1, ymin=y + 1, xmax=x + width, ymax=y + height)
        ElementTree.ElementTree(node).write(root / f'Annotations/{names[-1]}.xml')
    (root / f'ImageSets/Main/{split}.txt').write_text('\n'.join(names) + '\n')


def add(node: ElementTree.Element, tag: str, **values: object) -> ElementTree.Element:
    added = ElementTree.SubElement(node, tag)
    for name, value in values.items():
        ElementTree.SubElement(added, name).text = str(value)
    return added


def small(*more: str) -> tuple[str, ...]:
    """Options for one epoch of two small images a step, loaded in this process."""
    options = ['train_cfg.max_epochs=1', 'train_dataloader.batch_size=2']
    for key, transforms in SIZES.items():
        options += [f'{key}.{index}.{name}=(64,64)' for index, name in transforms.items()]
    for mode in ('train', 'val', 'test'):
        options.append(f'{mode}_dataloader.num_workers=0')
        options.append(f'{mode}_dataloader.persistent_workers=False')
    return ('--cfg-options', *options, *more)


@dataclass
class Reader:
    """Someone who follows the page in a folder of their own."""

    folder: Path
    form: str
    weights: dict[str, str]
    tool: Callable[..., int]

    def write(self) -> None:
        """Write the files of the page, in the reader's form of data."""
        for block in BLOCKS:
            if block.language != 'python' or FORMS.get(block.heading, self.form) != self.form:
                continue
            text = block.text
            if block.heading == 'A teacher of your own classes' and block.file == 'teacher.py':
                rest = (self.folder / 'student.py').read_text().splitlines(keepends=True)[2:]
                text += ''.join(rest)
            for url, path in self.weights.items():
                text = text.replace(url, path)
            (self.folder / block.file).write_text(text)

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.folder / file
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    def run(self, words: list[str], *options: str) -> int:
        """A command of the page, on the CPU and small; epochs are one."""
        assert words[:3] == ['python', '-m', 'mmkd'], words
        DetLocalVisualizer._instance_dict.clear()  # each command has a process of its own elsewhere
        name, *arguments = [word.replace('epoch_40', 'epoch_1') for word in words[3:]]
        name = 'models/inspect' if name == 'inspect' else name
        own = () if name in ('compare', 'report', 'models/inspect') else small(*options)
        return self.tool(name, *arguments, '--device', 'cpu', *own)


@pytest.fixture
def reader(tmp_path, weights, tool, request) -> Reader:
    found = Reader(tmp_path, getattr(request, 'param', 'coco'), weights, tool)
    write_data(tmp_path / 'data/mine', found.form)
    found.write()
    return found


# ---------------------------------------------------------------------- the page


def test_every_block_of_the_page_is_tested():
    files = {'student.py', 'distil.py', 'teacher.py', 'distil_own_teacher.py'}
    for block in BLOCKS:
        assert block.language in ('python', 'bash', 'text'), block
        assert block.language != 'python' or block.file in files, block
        assert block.language != 'bash' or block.heading in COMMANDS, block
        assert block.language != 'text' or block.heading == 'What check finds in own data', block
    assert {block.file for block in BLOCKS if block.language == 'python'} == files


def test_weights_are_those_of_the_model_index():
    index = (Path(mmdet.__file__).parent / '.mim/configs/rtmdet/metafile.yml').read_text()
    assert len(URLS) == 2 and all(f'Weights: {url}\n' in index for url in URLS)
    assert 'box AP: 40.9' in index and 'box AP: 49.1' in index


@pytest.mark.parametrize('reader', ['voc'], indirect=True)
def test_both_forms_differ_in_data_alone(reader):
    """What a reader of one form is told holds for the other."""
    voc = Config.fromfile(reader.folder / 'student.py')
    reader.form = 'coco'
    reader.write()
    coco = Config.fromfile(reader.folder / 'student.py')
    data = [
        f'{mode}_{part}'
        for mode in ('train', 'val', 'test')
        for part in ('dataloader', 'evaluator')
    ]
    for each in (voc, coco):
        for key in (*data, 'own', 'keys', 'test_pipeline'):
            each.pop(key, None)
    assert voc.to_dict() == coco.to_dict()


def test_the_learning_rate_is_as_the_table_has_it(reader):
    own = Config.fromfile(reader.folder / 'student.py')
    base = get_config('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py')
    assert own.optim_wrapper.optimizer.lr == base.optim_wrapper.optimizer.lr == 0.004
    assert base.auto_scale_lr.base_batch_size * 16 == own.auto_scale_lr.base_batch_size == 8 * 32
    assert base.param_scheduler[0].end == 1000
    assert base.param_scheduler[1].eta_min > 0.004 * own.train_dataloader.batch_size / 256
    assert own.custom_hooks[1].switch_epoch == own.epochs - 5 == own.train_cfg.max_epochs - 5


def scores(folder: Path) -> set[str]:
    """The classes that the latest test of a work directory has a score for."""
    files = [path for path in folder.glob('*/*.json') if path.stem == path.parent.name]
    record = json.loads(max(files).read_text())
    return {
        key.removeprefix('coco/').removesuffix('_precision') for key in record if 'precision' in key
    }


def run_and_look(reader: Reader, capsys: pytest.CaptureFixture, *options: str) -> None:
    """The commands of the section "Run"; a random teacher is what ``doctor`` finds."""
    command = {words[3]: words for words in commands('3. Run')}
    work_dir = reader.folder / 'work_dirs/distil'
    assert reader.run(command['check']) == 0
    assert 'distil.py: 0 errors, 0 warnings' in capsys.readouterr().out
    if reader.form == 'coco':
        assert reader.run(command['doctor']) == 2
        printed = capsys.readouterr().out
        assert 'Classes of the teacher: person, lorry = truck\n' in printed
        assert 'teacher: mAP 0.0' in printed and 'teacher.checkpoint: ' in printed
    assert reader.run(command['train'], *options) == 0
    assert (work_dir / 'epoch_1.pth').is_file()
    assert 'by loss_kd_cls, loss_kd_bbox, loss_kd_neck' in capsys.readouterr().out
    assert reader.run(command['test']) == 0
    assert scores(work_dir) == set(CLASSES)
    printed = capsys.readouterr().out
    assert all(re.search(rf'\| {name} +\|', printed) for name in CLASSES)
    # Detectors of random weights find nothing on all images alike.
    images = [str(path) for path in sorted((reader.folder / 'data/mine').rglob('*0.*g'))[-1:]]
    assert reader.run([*command['compare'], '--images', *images]) == 0
    assert (reader.folder / 'work_dirs/comparison.png').is_file()
    source = 'data/mine/val' if reader.form == 'coco' else 'data/mine/JPEGImages'
    shutil.copytree(reader.folder / source, reader.folder / 'new_images')
    assert reader.run(command['predict'], 'model.student.test_cfg.score_thr=0.0') == 0
    found = json.loads((reader.folder / 'predictions/predictions.json').read_text())
    assert {each['category'] for each in found} == set(CLASSES)
    drawn, given = (
        len(list((reader.folder / name).iterdir())) for name in ('predictions/images', 'new_images')
    )
    assert drawn == given > 0


def test_the_page_on_data_in_coco_form(reader, capsys):
    """All commands but ``inspect``, in the order of the page."""
    run_and_look(reader, capsys)
    train_teacher, check, train = commands('A teacher of your own classes')
    assert reader.run(train_teacher) == 0
    own_teacher = 'model.teacher.checkpoint=work_dirs/teacher/epoch_1.pth'
    capsys.readouterr()
    assert reader.run(check, own_teacher) == 0
    assert reader.run(train, own_teacher) == 0
    assert (reader.folder / 'work_dirs/distil_own_teacher/epoch_1.pth').is_file()
    alone, report = commands('Does it help?')
    assert reader.run(alone) == 0
    assert reader.run(report) == 0
    table = (reader.folder / 'work_dirs/report/report.md').read_text()
    assert re.search(r'\| distil +\| distilled', table) and re.search(
        r'\| student +\| baseline', table
    )


@pytest.mark.parametrize('reader', ['voc'], indirect=True)
def test_the_page_on_data_in_vocs_form(reader, capsys):
    """The commands that read the data; training ends without mosaic at once."""
    run_and_look(reader, capsys, 'custom_hooks.1.switch_epoch=0')


def test_the_losses_are_those_that_inspect_suggests(reader, capsys):
    (command,) = commands('Another pair')
    assert reader.run([*command, '--size', '64', '64']) == 0
    printed = capsys.readouterr().out
    suggested: dict = {}
    exec(printed[printed.index('losses = dict(') :], suggested)
    own = Config.fromfile(reader.folder / 'distil.py').model.losses
    assert own.keys() == suggested['losses'].keys()
    for name, entry in suggested['losses'].items():
        kinds = [each.get('align') for each in (own[name], entry)]
        assert kinds[1] == (kinds[0] and dict(type=kinds[0])), name
        assert own[name].type == entry['type'] and own[name].loss_weight == 'auto'
        assert own[name].get('connector') == entry.get('connector')


# ---------------------------------------------------------------------- faults


def errors(printed: str) -> list[str]:
    """The lines of ``check`` that name an error, without what stands before them."""
    return [line.partition('error    ')[2] for line in printed.splitlines() if 'error    ' in line]


def spell_wrongly(reader: Reader) -> None:
    reader.edit('student.py', "'lorry'", "'lory'")


def reorder(reader: Reader) -> None:
    for split in ('train', 'val'):
        edit_annotations(reader, split, lambda content: content['categories'].reverse())


def write_corners(reader: Reader) -> None:
    """Objects are in the lower right, where corners as width and height reach out of the image."""

    def change(content: dict) -> None:
        for each in content['annotations']:
            _, _, width, height = each['bbox']
            each['bbox'] = [127 - width, 95 - height, 127, 95]

    edit_annotations(reader, 'train', change)


def edit_annotations(reader: Reader, split: str, change: Callable[[dict], None]) -> None:
    path = reader.folder / f'data/mine/annotations/{split}.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


MESSAGES = [block.text.strip() for block in BLOCKS if block.language == 'text']


@pytest.mark.parametrize(
    ('spoil', 'message'), list(zip((spell_wrongly, reorder, write_corners), MESSAGES, strict=True))
)
def test_check_prints_the_message_of_the_page(reader, capsys, spoil, message):
    spoil(reader)
    assert reader.run(['python', '-m', 'mmkd', 'check', 'student.py']) == 2
    assert message in errors(capsys.readouterr().out)


@pytest.mark.parametrize('reader', ['coco', 'voc'], indirect=True)
def test_a_misspelled_class_is_one_line_that_names_it(reader, capsys):
    reader.edit('student.py', "'person'", "'persn'")
    assert reader.run(['python', '-m', 'mmkd', 'train', 'distil.py']) == 2
    lines = capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if line.startswith('mmkd: error: ')]
    assert 'persn' in line and 'near: person' in line
    assert not list(reader.folder.glob('work_dirs/*/*.pth'))


COMMANDS = {
    '3. Run': ('check', 'doctor', 'train', 'test', 'compare', 'predict'),
    'A teacher of your own classes': ('train', 'check', 'train'),
    'Does it help?': ('train', 'report'),
    'Another pair': ('inspect',),
}


@pytest.mark.parametrize(('heading', 'names'), list(COMMANDS.items()))
def test_every_command_of_the_page_is_tested(heading, names):
    assert tuple(words[3] for words in commands(heading)) == names
