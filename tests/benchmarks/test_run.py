"""benchmarks/run.py, on a study of two recipes that train for two iterations."""

from __future__ import annotations

import json
import runpy
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from scipy import stats
from tiny_models import CLASSES, ROI_LOSSES, faster_rcnn, save_teacher
from tiny_training import training_config, write_coco

SCRIPT = Path(__file__).parents[2] / 'benchmarks' / 'run.py'


@pytest.fixture
def run(monkeypatch, tmp_path):
    """``run(*arguments)`` runs the script in tmp_path; returns its exit code."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', [str(SCRIPT), *map(str, arguments)])
        try:
            runpy.run_path(str(SCRIPT), run_name='__main__')
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return run


@pytest.fixture
def study(tmp_path):
    """The file of a study: a teacher, a baseline and a distilled student."""
    data = write_coco(tmp_path / 'data')
    plain = training_config(faster_rcnn(), data, tmp_path, iters=2)
    plain.data_root = f'{data}/'
    plain.train_cfg.val_interval = 2
    plain.log_level = 'INFO'
    for key in ('work_dir', 'experiment_name', 'visualizer'):
        plain.pop(key)
    plain.dump(str(tmp_path / 'plain.py'))
    distilled = Config(plain.to_dict())
    distilled.model = dict(
        type='Distiller',
        student=plain.model.to_dict(),
        teacher=dict(config='', checkpoint=''),
        losses=ROI_LOSSES,
    )
    distilled.dump(str(tmp_path / 'distilled.py'))
    path = tmp_path / 'tiny.py'
    path.write_text(
        f"""
teacher = dict(config='{tmp_path}/plain.py', seed=5)
data_root = '{data}/'
seeds = (0, 1)
recipes = dict(
    baseline=dict(config='{tmp_path}/plain.py'),
    kd=dict(config='{tmp_path}/distilled.py', options={{'model.losses.loss_kd_cls.tau': 3.0}}),
)
"""
    )
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows_of(table):
    """The cells of a Markdown table, row by row, without the rule below the head."""
    rows = [row for row in table.splitlines() if row.startswith('| ')]
    return [[cell.strip() for cell in row.strip('|').split('|')] for row in rows]


def test_trains_what_is_missing_and_nothing_twice(run, study, tmp_path, capsys):
    results = tmp_path / 'results.jsonl'
    common = (study, '--results', results, '--device', 'cpu')
    assert run(*common, '--seeds', 0) == 0
    found = lines(results)
    assert [(line['recipe'], line['seed']) for line in found] == [
        ('teacher', 5),
        ('baseline', 0),
        ('kd', 0),
    ]
    for line in found:
        assert set(line) == {
            *('study', 'recipe', 'seed', 'mAP', 'AP50', 'F1', 'config_hash', 'git_commit'),
            *('versions', 'device', 'seconds'),
        }
        assert line['study'] == 'tiny' and line['seconds'] > 0 and line['versions']['mmkd']
    table = capsys.readouterr().out
    assert [row[:2] for row in rows_of(table)[1:]] == [
        ['teacher', '1'],
        ['baseline', '1'],
        ['kd', '1'],
    ]
    (folder,) = (tmp_path / 'work_dirs/benchmarks/tiny').glob('kd_seed0_*')
    used = Config.fromfile(folder / 'config.py')
    assert used.model.losses.loss_kd_cls.tau == 3.0 and used.randomness.seed == 0
    assert Path(used.model.teacher.checkpoint).is_file()
    assert 'Distilling FasterRCNN' in (folder / 'console.log').read_text()

    assert run(*common, '--seeds', 0) == 0
    assert lines(results) == found
    assert '2 of 2 runs are there' in capsys.readouterr().out
    # Another temperature is another experiment, of this recipe alone.
    study.write_text(study.read_text().replace('3.0', '4.0'))
    assert run(*common, '--seeds', 0, '--recipes', 'kd') == 0
    more = lines(results)
    assert len(more) == 4 and more[3]['recipe'] == 'kd'
    assert more[3]['config_hash'] != found[2]['config_hash']


def test_the_step_of_a_recipe_is_measured_and_shown(run, study, tmp_path, capsys):
    results = tmp_path / 'results.jsonl'
    common = (study, '--results', results, '--device', 'cpu', '--seeds', 0)
    assert run(*common) == 0
    assert 'step' not in rows_of(capsys.readouterr().out)[0]
    assert run(*common, '--step-cost') == 0
    (line,) = lines(tmp_path / 'steps.jsonl')
    assert line['recipe'] == 'kd' and set(line['losses_s']) == set(ROI_LOSSES)
    assert line['config_hash'] == lines(results)[-1]['config_hash']
    assert line['student_step_s'] > 0 and line['git_commit'] and line['device']
    table = capsys.readouterr().out
    header, *rows = rows_of(table)
    assert header[-1] == 'step' and len({*map(len, rows)}) == 1
    ratio = f'{line["kd_step_s"] / line["student_step_s"]:.2f}'
    (kd,) = [row for row in rows if row[0] == 'kd']
    assert kd[-1] == ratio
    assert len(lines(results)) == 3  # nothing was trained for it
    # Another temperature is another experiment, whose step is not known.
    study.write_text(study.read_text().replace('3.0', '4.0'))
    assert run(*common, '--table') == 0
    assert ['baseline', '1'] in [row[:2] for row in rows_of(capsys.readouterr().out)]


def test_a_withdrawn_line_counts_as_not_there(run, study, tmp_path, capsys):
    results = tmp_path / 'results.jsonl'
    common = (study, '--results', results, '--device', 'cpu', '--seeds', 0)
    assert run(*common) == 0
    every = lines(results)
    every[-1]['withdrawn'] = 'a reason'
    results.write_text(''.join(json.dumps(line) + '\n' for line in every))
    capsys.readouterr()
    assert run(*common, '--table') == 0
    found = [row[0] for row in rows_of(capsys.readouterr().out)]
    assert found == ['recipe', 'teacher', 'baseline']


def test_an_interrupted_run_goes_on_where_it_was(run, study, tmp_path):
    """The second of its two iterations is all that is left to do."""
    results = tmp_path / 'results.jsonl'
    common = (study, '--results', results, '--device', 'cpu', '--seeds', 0)
    assert run(*common, '--recipes', 'baseline') == 0
    (folder,) = (tmp_path / 'work_dirs/benchmarks/tiny').glob('baseline_seed0_*')
    results.write_text(results.read_text().splitlines()[0] + '\n')  # the teacher's
    assert run(*common, '--recipes', 'baseline') == 0
    assert 'resumed epoch: 0, iter: 2' in (folder / 'console.log').read_text()
    assert len(lines(results)) == 2


def test_a_training_that_fails_is_named_and_the_others_go_on(run, study, tmp_path, capsys):
    results = tmp_path / 'results.jsonl'
    study.write_text(study.read_text().replace('loss_kd_cls.tau', 'loss_kd_cls.temperature'))
    assert run(study, '--results', results, '--device', 'cpu', '--seeds', 0, '--jobs', 2) == 2
    assert [line['recipe'] for line in lines(results)] == ['teacher', 'baseline']
    error = capsys.readouterr().err
    assert '1 trainings failed: kd, seed 0: ' in error and 'temperature' in error


def test_the_table_compares_seed_by_seed(run, study, tmp_path, capsys, monkeypatch):
    """Means, intervals and the paired test, against scipy's own; results of other configs do not count."""
    monkeypatch.syspath_prepend(str(SCRIPT.parents[1] / 'tools'))
    module = runpy.run_path(str(SCRIPT), run_name='run')
    tiny = module['Study'](study, Path('work_dirs/benchmarks'))
    given = {'teacher': {5: 0.5}, 'baseline': {0: 0.10, 1: 0.14}, 'kd': {0: 0.22, 1: 0.24}}
    text = [
        dict(study='tiny', recipe='kd', seed=0, mAP=0.9, AP50=0.9, F1=0.9, config_hash='old'),
        dict(study='other', recipe='kd', seed=0, mAP=0.9, AP50=0.9, F1=0.9, config_hash='x'),
    ]
    for one in [tiny.teacher(), *tiny.runs(None, None)]:
        value = dict.fromkeys(('mAP', 'AP50', 'F1'), given[one.recipe][one.seed])
        line = dict(study='tiny', recipe=one.recipe, seed=one.seed, config_hash=one.digest)
        text.append(line | value)
    results = tmp_path / 'results.jsonl'
    results.write_text('\n'.join(map(json.dumps, text)) + '\n')
    assert run(study, '--results', results, '--table') == 0
    (row,) = [r for r in capsys.readouterr().out.splitlines() if r.startswith('| kd ')]
    cells = [cell.strip() for cell in row.strip('|').split('|')]
    difference = stats.ttest_rel([22.0, 24.0], [10.0, 14.0])
    low, high = difference.confidence_interval(0.95)
    assert cells[1] == '2'
    assert cells[2].startswith('23.0 ± ')
    assert cells[5] == f'+{(high + low) / 2:.1f} ± {(high - low) / 2:.1f}'
    assert cells[6] == f'{difference.pvalue:.3f}'
    assert cells[7] == f'{100 * 11 / (50 - 12):.0f} %'


def test_other_conditions_have_baselines_of_their_own(run, study, tmp_path, capsys, monkeypatch):
    """And what another study has run of the same config and seed is not run again."""
    monkeypatch.syspath_prepend(str(SCRIPT.parents[1] / 'tools'))
    module = runpy.run_path(str(SCRIPT), run_name='run')
    text = study.read_text()
    short = "options={'train_cfg.max_iters': 1}, against='baseline-short'"
    added = f"""    **{{
        'baseline-short': dict(config='{tmp_path}/plain.py', {short}),
        'kd-short': dict(config='{tmp_path}/distilled.py', {short}),
    }},
"""
    other = tmp_path / 'other.py'
    other.write_text(text.rstrip().removesuffix(')') + added + ')\n')
    given = {'baseline': 0.10, 'kd': 0.22, 'baseline-short': 0.02, 'kd-short': 0.05, 'teacher': 0.5}
    written = []
    for name, path in (('tiny', study), ('other', other)):
        loaded = module['Study'](path, Path('work_dirs/benchmarks'))
        for one in [loaded.teacher(), *loaded.runs(None, None)]:
            if name == 'tiny' or 'short' in one.recipe:
                scores = dict.fromkeys(('mAP', 'AP50', 'F1'), given[one.recipe])
                line = dict(study=name, recipe=one.recipe, seed=one.seed, config_hash=one.digest)
                written.append(line | scores)
    results = tmp_path / 'results.jsonl'
    results.write_text('\n'.join(map(json.dumps, written)) + '\n')
    assert run(other, '--results', results) == 0  # trains nothing
    assert len(lines(results)) == len(written)
    rows = [row for row in capsys.readouterr().out.splitlines() if row.startswith('| ')]
    cells = {row.split('|')[1].strip(): [c.strip() for c in row.split('|')[2:]] for row in rows}
    assert cells['kd'][4].startswith('+12.0') and cells['kd-short'][4].startswith('+3.0')
    assert cells['baseline'][4] == cells['baseline-short'][4] == ''


def test_mistakes_are_one_line(run, study, capsys):
    assert run('nothing') == 2
    error = capsys.readouterr().err
    assert 'no study nothing; there are ' in error and ' detr,' in error
    assert run(study, '--recipes', 'kq', '--table') == 2
    assert "has no recipe 'kq'; near: kd" in capsys.readouterr().err
    study.write_text('seeds = (0,)\nrecipes = dict(a=1)\n')
    assert run(study, '--table') == 2
    assert 'teacher not given' in capsys.readouterr().err


def test_shipped_studies_are_of_shipped_configs():
    for path in (SCRIPT.parent / 'studies').glob('*.py'):
        study = Config.fromfile(path)
        for settings in (study.teacher, *study.recipes.values()):
            cfg = Config.fromfile(SCRIPT.parents[1] / settings.config)
            cfg.merge_from_dict(dict(settings.get('options') or {}))
        assert len(study.seeds) >= 3 and 'baseline' in study.recipes


def test_the_page_shows_what_the_results_give(monkeypatch, tmp_path):
    """Every shipped study's table, made anew from the results that are committed with it."""
    monkeypatch.syspath_prepend(str(SCRIPT.parents[1] / 'tools'))
    monkeypatch.chdir(SCRIPT.parents[1])
    module = runpy.run_path(str(SCRIPT), run_name='run')
    page = (SCRIPT.parents[1] / 'docs/results.md').read_text()
    for path in (SCRIPT.parent / 'studies').glob('*.py'):
        study = module['Study'](path, Path('work_dirs/benchmarks'))
        results = module['Results'](SCRIPT.parent / 'results.jsonl', path.stem)
        if not results.lines:
            continue  # declared, and not run so far
        steps = module['Steps'](SCRIPT.parent / 'steps.jsonl', path.stem)
        table = module['compare'](study, results, steps)
        assert table in page
        rows = rows_of(table)[2:]
        assert {row[0] for row in rows} == set(study.settings.recipes)
        assert all(int(row[1]) >= 3 for row in rows)
        copy = tmp_path / 'page.md'
        copy.write_text(page)
        module['publish'](path.stem, table, copy)
        assert copy.read_text() == page


# ------------------------------------------------- given teachers, held-out images, shared caches


@pytest.fixture
def given(study, tmp_path):
    """The same study with a teacher of more classes that is not trained, and images held out."""
    whole = faster_rcnn(classes=4)
    path = save_teacher(tmp_path / 'given.pth', whole, classes=('bird', *CLASSES))
    Config(dict(model=whole)).dump(str(tmp_path / 'whole.py'))
    text = study.read_text().replace(
        f"teacher = dict(config='{tmp_path}/plain.py', seed=5)",
        f"teacher = dict(config='{tmp_path}/plain.py', whole='{tmp_path}/whole.py', "
        f"checkpoint='{path}', sha256='{sha256(path.read_bytes()).hexdigest()}')\nheld_out = 0.5",
    )
    text = text.replace("kd=dict(config='", "kd=dict(cached=True, config='")
    own = {
        'model.teacher.proposals': 'teacher',
        'model.teacher.num_proposals': 8,
        'model.losses.loss_kd_bbox.align.select': 'teacher',
    }
    study.write_text(text.replace("options={'model", f"options={{**{own}, 'model"))
    return study


def test_a_given_teacher_is_evaluated_and_teaches(run, given, tmp_path):
    results = tmp_path / 'results.jsonl'
    common = (given, '--results', results, '--device', 'cpu', '--seeds', 0, '--recipes', 'kd')
    assert run(*common) == 0
    assert [line['recipe'] for line in lines(results)] == ['teacher', 'kd']
    folders = {
        path.name.split('_')[0]: path for path in (tmp_path / 'work_dirs/benchmarks/tiny').iterdir()
    }
    # What was evaluated says of the student's classes what the whole teacher says of them.
    weights = torch.load(folders['teacher'] / 'teacher.pth')['state_dict']
    whole = torch.load(tmp_path / 'given.pth')['state_dict']
    name = 'roi_head.bbox_head.fc_cls.bias'
    assert torch.equal(weights[name], whole[name][1:])
    used = Config.fromfile(folders['kd'] / 'config.py')
    assert used.model.teacher.checkpoint == str(tmp_path / 'given.pth')
    assert used.model.teacher.config == f'{tmp_path}/whole.py'
    assert Path(used.model.teacher.cache, 'cache.json').is_file()
    # Trained on other images than validated on, and on none but the training images.
    files = used.train_dataloader.dataset.ann_file, used.val_dataloader.dataset.ann_file
    parts = [
        {each['id'] for each in json.loads(Path(file).read_text())['images']} for file in files
    ]
    source = Config.fromfile(tmp_path / 'plain.py').train_dataloader.dataset
    every = json.loads((Path(source.data_root) / source.ann_file).read_text())['images']
    assert parts[0] and parts[1] and not parts[0] & parts[1]
    assert parts[0] | parts[1] == {each['id'] for each in every}
    assert used.val_evaluator.ann_file == files[1]
    # Nothing is done twice.
    before = lines(results)
    assert run(*common) == 0
    assert lines(results) == before


def test_seeds_share_a_cache_and_experiments_do_not(given, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(SCRIPT.parents[1] / 'tools'))
    module = runpy.run_path(str(SCRIPT), run_name='run')

    def caches():
        runs = module['Study'](given, tmp_path / 'runs').runs(['kd'], [0, 1])
        return [each.config.model.teacher.cache for each in runs], [each.digest for each in runs]

    (first, second), digests = caches()
    assert first == second and digests[0] != digests[1]
    given.write_text(
        given.read_text().replace(
            "'model.teacher.num_proposals': 8", "'model.teacher.num_proposals': 9"
        )
    )
    assert caches()[0][0] != first


def test_another_teacher_than_the_studys_is_refused(run, given, tmp_path, capsys):
    common = (given, '--results', tmp_path / 'results.jsonl', '--seeds', 0)
    path = tmp_path / 'given.pth'
    path.write_bytes(path.read_bytes() + b'.')
    assert run(*common) == 2
    assert f'{path} is not the one of {given} (teacher.sha256)' in capsys.readouterr().err
    path.unlink()
    assert run(*common) == 2
    assert f'there is no {path}; set MMKD_WEIGHTS' in capsys.readouterr().err
    assert not (tmp_path / 'results.jsonl').exists()


def test_weights_lie_where_the_environment_says(study, monkeypatch, tmp_path):
    """Where they lie is no part of the experiment; which they are, is."""
    monkeypatch.syspath_prepend(str(SCRIPT.parents[1] / 'tools'))
    module = runpy.run_path(str(SCRIPT), run_name='run')
    plain = tmp_path / 'plain.py'
    text = plain.read_text()

    def digest(folder, name='a.pth'):
        monkeypatch.setenv('MMKD_WEIGHTS', folder)
        init = (
            f"model['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint='{folder}/{name}')"
        )
        plain.write_text(f'{text}\n{init}\n')
        return module['Study'](study, tmp_path / 'runs').teacher().digest

    assert digest('weights') == digest('/elsewhere/weights') != digest('weights', 'b.pth')
