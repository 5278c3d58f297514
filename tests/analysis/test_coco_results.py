"""Ground truth and detections in COCO's form."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from mmdet.registry import DATASETS
from mmengine.registry import DefaultScope
from tiny_training import training_config, write_coco

from mmkd.analysis.coco_results import read_results, read_truth, results_of, truth_of
from mmkd.analysis.error_kinds import find_errors
from mmkd.errors import ConfigError, MissingFileError
from mmkd.visualization import Boxes, ground_truth

CLASSES = ('cat', 'dog', 'person')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp('data') / 'coco', images=4, classes=CLASSES)


def build(config):
    with DefaultScope.overwrite_default_scope('mmdet'):
        return DATASETS.build(config)


@pytest.fixture
def coco_dataset(data):
    config = training_config({}, data, data).val_dataloader.dataset
    return build(config | dict(metainfo=dict(classes=('cat', 'person')), test_mode=True))


@pytest.fixture
def voc_dataset(tmp_path):
    """One image in VOC's form with two dogs, of which one is difficult."""
    objects = ''.join(
        f'<object><name>dog</name><difficult>{difficult}</difficult><bndbox><xmin>{x + 1}</xmin>'
        f'<ymin>11</ymin><xmax>{x + 31}</xmax><ymax>41</ymax></bndbox></object>'
        for x, difficult in ((10, 0), (60, 1))
    )
    for folder in ('Annotations', 'ImageSets/Main', 'JPEGImages'):
        (tmp_path / 'VOC2012' / folder).mkdir(parents=True)
    (tmp_path / 'VOC2012/Annotations/a.xml').write_text(
        f'<annotation><size><width>100</width><height>80</height></size>{objects}</annotation>'
    )
    (tmp_path / 'VOC2012/ImageSets/Main/val.txt').write_text('a\n')
    config = dict(
        type='VOCDataset', data_root=str(tmp_path), ann_file='VOC2012/ImageSets/Main/val.txt'
    )
    prefix = dict(data_prefix=dict(sub_data_root='VOC2012/'), test_mode=True, pipeline=[])
    return build(config | prefix)


def found_all(dataset):
    """A detector that finds just what there is."""
    for index in range(len(dataset)):
        truth = ground_truth(dataset, index)
        yield Boxes(truth.boxes, truth.labels, np.full(len(truth), 0.9))


def test_labels_of_a_coco_data_set_are_ids_of_the_file(coco_dataset):
    truth = truth_of(coco_dataset)
    assert truth.categories == [1, 3] and truth.images == [0, 1, 2, 3]
    results = results_of(found_all(coco_dataset), truth)
    names = {each['id']: each['name'] for each in truth.coco.dataset['categories']}
    labels = ground_truth(coco_dataset, 0).labels
    assert [names[each['category_id']] for each in results[:2]] == [
        coco_dataset.metainfo['classes'][label] for label in labels
    ]
    assert find_errors(truth, results).average_precision() == pytest.approx(1)


def test_a_data_set_in_vocs_form_has_its_own_ground_truth(voc_dataset):
    truth = truth_of(voc_dataset)
    assert len(truth.categories) == 20 and truth.images == [0]
    errors = find_errors(truth, results_of(found_all(voc_dataset), truth))
    assert len(errors.objects) == 1  # the difficult one does not count
    assert errors.average_precision() == pytest.approx(1)
    both = [Boxes(np.array([[60.0, 10, 90, 40]]), np.array([11]), np.array([0.9]))]
    assert find_errors(truth, results_of(both, truth)).detections == []


@pytest.fixture
def files(data, tmp_path):
    """An annotation file, and results for it."""
    shutil.copy(data / 'annotations.json', tmp_path / 'ann.json')
    result = dict(image_id=2, category_id=3, bbox=[1, 2, 3, 4], score=0.5)
    (tmp_path / 'good.json').write_text(json.dumps([result, dict(result, category_id=1)]))
    for name, changed in {
        'image': dict(image_id=77),
        'class': dict(category_id=9),
        'predicted': dict(file_name='elsewhere/1.png'),
        'named': dict(category='cat'),
    }.items():
        (tmp_path / f'{name}.json').write_text(json.dumps([result | changed]))
    (tmp_path / 'form.json').write_text('{"images": []}')
    (tmp_path / 'text.json').write_text('no json')
    return tmp_path


def test_results_of_the_classes_that_count(files):
    truth = read_truth(str(files / 'ann.json'), ['person'])
    assert truth.categories == [3]
    assert [each['category_id'] for each in read_results(str(files / 'good.json'), truth)] == [3]
    assert len(read_results(str(files / 'good.json'), read_truth(str(files / 'ann.json')))) == 2


@pytest.mark.parametrize(
    ('name', 'says'),
    [
        ('image', 'image_id must be in --ann-file, got 77'),
        ('class', 'category_id must be in --ann-file, got 9'),
        (
            'predicted',
            'image_id 2 must be 2.png as in --ann-file, got elsewhere/1.png; run predict',
        ),
        ('named', 'category_id 3 must be person as in --ann-file, got cat; run predict'),
        ('form', 'must be a list of detections with image_id, category_id, bbox, score'),
        ('text', 'is not a JSON file'),
    ],
)
def test_results_of_another_annotation_file_are_refused(files, name, says):
    truth = read_truth(str(files / 'ann.json'))
    with pytest.raises(ConfigError, match=says):
        read_results(str(files / f'{name}.json'), truth)


def test_files_and_classes_that_are_not_there(files):
    with pytest.raises(MissingFileError, match='--ann-file: no such file: none.json'):
        read_truth('none.json')
    with pytest.raises(ConfigError, match="--classes: must be classes of .*, got 'dgo'; near: dog"):
        read_truth(str(files / 'ann.json'), ['dgo'])
    with pytest.raises(MissingFileError, match='none.json: no such file'):
        read_results('none.json', read_truth(str(files / 'ann.json')))
