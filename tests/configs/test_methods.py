"""The recipes of published methods, their metafiles and the page that lists them."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
import yaml
from mmdet.registry import MODELS
from mmengine.config import Config

ROOT = Path(__file__).parents[2]
METHODS = ROOT / 'configs' / 'methods'
RECIPES = sorted(METHODS.rglob('*.py'))
PAGE = ROOT / 'docs' / 'recipes' / 'methods.md'
every_recipe = pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)


def entries():
    """What the metafiles that model-index.yml imports say, by config."""
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    files = [yaml.safe_load((ROOT / name).read_text()) for name in index['Import']]
    collections = {each['Name'] for file in files for each in file['Collections']}
    models = [model for file in files for model in file['Models']]
    assert {model['In Collection'] for model in models} == collections
    assert len({model['Config'] for model in models}) == len(models)
    return {model['Config']: model for model in models}


def test_every_recipe_is_listed_once():
    assert set(entries()) == {path.relative_to(ROOT).as_posix() for path in RECIPES}
    linked = re.findall(r'\]\(\.\./\.\./(configs/methods/[^)]*\.py)\)', PAGE.read_text())
    assert set(linked) == set(entries())


def stack() -> Path:
    """The configs that come with MMDetection."""
    package = Path(MODELS.get('FasterRCNN').__module__.replace('.', '/')).parts[0]
    found = importlib.util.find_spec(package).submodule_search_locations[0]
    return Path(found) / '.mim' / 'configs'


@every_recipe
def test_the_metafile_names_the_pair_and_the_teachers_weights(path):
    entry = entries()[path.relative_to(ROOT).as_posix()]
    assert entry['Name'] == path.stem
    teacher = Config.fromfile(path).model.teacher
    assert teacher.config == entry['Teacher']
    config = stack() / teacher.config.removeprefix('mmdet::')
    index = yaml.safe_load((config.parent / 'metafile.yml').read_text())
    models = index['Models'] if isinstance(index, dict) else index
    (published,) = [
        model for model in models if model['Config'].endswith('/'.join(config.parts[-2:]))
    ]
    address = re.compile(r'https?://[^/]*/')  # the mirrors differ in the host alone
    assert address.sub('', published['Weights']) == address.sub('', teacher.checkpoint)
    assert teacher.checkpoint.startswith('https://download.openmmlab.com/')
    scores = entry['Published']
    assert scores['Source']
    if 'Metric' in scores and 'MMYOLO' not in scores['Source']:
        (own,) = [
            result['Metrics']['box AP']
            for result in published['Results']
            if result['Task'] == 'Object Detection'
        ]
        assert own == scores['Teacher']
        # All but one gain; a student may pass its teacher.
        assert scores['Distilled'] > scores['Baseline']


@every_recipe
def test_each_number_says_where_it_comes_from(path):
    text = path.read_text()
    assert text.startswith('# ') and re.search(r'arXiv \d{4}\.\d{5}|NeurIPS 2017|Value', text)
    assert re.search(r'Values?[:, ]|values', text)


@every_recipe
def test_the_page_shows_the_published_scores(path):
    entry = entries()[path.relative_to(ROOT).as_posix()]
    (row,) = [line for line in PAGE.read_text().splitlines() if f'{path.name})' in line]
    scores = entry['Published']
    if 'Metric' in scores:
        assert f'{scores["Baseline"]:.1f} → {scores["Distilled"]:.1f}' in row
    else:
        assert '→' not in row


def test_the_page_shows_the_measured_steps():
    """Of the methods that the study measured, once for each that has a recipe."""
    lines = (ROOT / 'benchmarks' / 'steps.jsonl').read_text().splitlines()
    steps = [line for line in map(json.loads, lines) if line['study'] == 'methods']
    costs = {line['recipe']: line['kd_step_s'] / line['student_step_s'] for line in steps}
    shown = re.findall(r'configs/methods/(\w+)/\S* \|.*\| (\d\.\d\d) \|$', PAGE.read_text(), re.M)
    assert {method for method, _ in shown} == set(costs) - {'kl-mse'}
    for method, cost in shown:
        assert cost == f'{costs[method]:.2f}', method
