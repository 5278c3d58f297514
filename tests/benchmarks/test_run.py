"""benchmarks/run.py, on a study of two recipes that train for two iterations."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from contextlib import redirect_stdout
from hashlib import sha256
from io import StringIO
from pathlib import Path

import pytest
import torch
from conditions import environment, observe_process
from mmengine.config import Config
from scipy import stats
from tiny_models import CLASSES, ROI_LOSSES, faster_rcnn, save_teacher
from tiny_training import training_config, write_coco

from mmkd.checkpoints import read_checkpoint

SCRIPT = Path(__file__).parents[2] / 'benchmarks' / 'run.py'


def run_script(folder, *arguments):
    """Run the script in a folder; returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, 'argv', [str(SCRIPT), *map(str, arguments)])
        try:
            runpy.run_path(str(SCRIPT), run_name='__main__')
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


@pytest.fixture
def run(monkeypatch, tmp_path):
    """``run(*arguments)`` runs the script in tmp_path; returns its exit code."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run_script(tmp_path, *arguments)


def write_study(folder):
    """The file of a study in ``folder``: a teacher, a baseline and a distilled student."""
    data = write_coco(folder / 'data')
    plain = training_config(faster_rcnn(), data, folder, iters=2)
    plain.data_root = f'{data}/'
    plain.train_cfg.val_interval = 2
    plain.log_level = 'INFO'
    for key in ('work_dir', 'experiment_name', 'visualizer'):
        plain.pop(key)
    plain.dump(str(folder / 'plain.py'))
    distilled = Config(plain.to_dict())
    distilled.model = dict(
        type='Distiller',
        student=plain.model.to_dict(),
        teacher=dict(config='', checkpoint=''),
        losses=ROI_LOSSES,
    )
    distilled.dump(str(folder / 'distilled.py'))
    path = folder / 'tiny.py'
    path.write_text(
        f"""
teacher = dict(config='{folder}/plain.py', seed=99)
data_root = '{data}/'
seeds = (0, 1)
recipes = dict(
    baseline=dict(config='{folder}/plain.py'),
    kd=dict(config='{folder}/distilled.py', options={{'model.losses.loss_kd_cls.tau': 3.0}}),
)
"""
    )
    return path


@pytest.fixture
def study(tmp_path):
    """The file of a study that nothing is trained of."""
    return write_study(tmp_path)


@pytest.fixture(scope='module')
def trained_once(tmp_path_factory):
    """A folder with a study of which seed 0 is trained, and what that printed."""
    folder = tmp_path_factory.mktemp('trained')
    path = write_study(folder)
    with redirect_stdout(StringIO()) as printed:
        code = run_script(
            folder, path, '--results', folder / 'results.jsonl', '--device', 'cpu', '--seeds', 0
        )
    assert code == 0
    return folder, printed.getvalue()


@pytest.fixture
def trained(trained_once, tmp_path):
    """A copy of it, at another path: the study's file. Its runs are known by what they are, not where."""
    folder, _ = trained_once
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for name in ('plain.py', 'distilled.py', 'tiny.py'):
        file = tmp_path / name
        file.write_text(file.read_text().replace(str(folder), str(tmp_path)))
    return tmp_path / 'tiny.py'


@pytest.fixture
def written(monkeypatch):
    """``written(study, {recipe: [mAP of seed 0, …]})``: lines as they are after such trainings."""

    def write(path, given):
        module = module_of(monkeypatch)
        origin = observe_process('cpu', environment()) | dict(arithmetic='AVX2, 1 thread')
        loaded = module['Study'](path, Path('work_dirs/benchmarks'))
        teacher = [loaded.teacher()] if 'teacher' in given else []
        runs = loaded.runs(
            [name for name in given if name != 'teacher'], range(max(map(len, given.values())))
        )
        found = []
        for one in [*teacher, *runs]:
            index = 0 if one.recipe == 'teacher' else one.seed
            if index < len(given[one.recipe]):
                value = dict.fromkeys(('mAP', 'AP50', 'F1'), given[one.recipe][index])
                line = dict(study=path.stem, recipe=one.recipe, seed=one.seed, **value)
                found.append(line | dict(config_hash=one.digest, files=dict(weights='1'), **origin))
        return found

    return write


def module_of(monkeypatch):
    """What benchmarks/run.py defines."""
    monkeypatch.syspath_prepend(str(SCRIPT.parents[1] / 'tools'))
    return runpy.run_path(str(SCRIPT), run_name='run')


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows_of(table):
    """The cells of a Markdown table, row by row, without the rule below the head."""
    rows = [row for row in table.splitlines() if row.startswith('| ')]
    return [[cell.strip() for cell in row.strip('|').split('|')] for row in rows]


def test_trains_what_is_missing_and_nothing_twice(run, trained, trained_once, tmp_path, capsys):
    study, results = trained, tmp_path / 'results.jsonl'
    common = (study, '--results', results, '--device', 'cpu')
    found = lines(results)
    assert [(line['recipe'], line['seed']) for line in found] == [
        ('teacher', 99),
        ('baseline', 0),
        ('kd', 0),
    ]
    for line in found:
        assert set(line) == {
            *('study', 'recipe', 'seed', 'mAP', 'AP50', 'F1', 'config_hash', 'git_commit'),
            *('versions', 'device', 'arithmetic', 'files', 'resumed', 'seconds'),
        }
        assert line['study'] == 'tiny' and line['seconds'] > 0 and line['versions']['mmkd']
        assert line['arithmetic'].endswith(', 1 thread') and line['resumed'] is False
    assert [row[:2] for row in rows_of(trained_once[1])[1:]] == [
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
    assert '2 of 2 runs are finished' in capsys.readouterr().out
    # Another temperature is another experiment, of this recipe alone.
    study.write_text(study.read_text().replace('3.0', '4.0'))
    assert run(*common, '--seeds', 0, '--recipes', 'kd') == 0
    more = lines(results)
    assert len(more) == 4 and more[3]['recipe'] == 'kd'
    assert more[3]['config_hash'] != found[2]['config_hash']


def test_the_step_of_a_recipe_is_measured_and_shown(run, trained, trained_once, tmp_path, capsys):
    study, results = trained, tmp_path / 'results.jsonl'
    common = (study, '--results', results, '--device', 'cpu', '--seeds', 0)
    assert 'step' not in rows_of(trained_once[1])[0]
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


def test_a_withdrawn_line_counts_as_not_there(run, trained, tmp_path, capsys):
    results = tmp_path / 'results.jsonl'
    common = (trained, '--results', results, '--device', 'cpu', '--seeds', 0)
    every = lines(results)
    every[-1]['withdrawn'] = 'a reason'
    results.write_text(''.join(json.dumps(line) + '\n' for line in every))
    capsys.readouterr()
    assert run(*common, '--table') == 0
    found = [row[0] for row in rows_of(capsys.readouterr().out)]
    assert found == ['recipe', 'teacher', 'baseline']


def test_an_interrupted_run_starts_again_and_ends_the_same(run, trained, tmp_path, monkeypatch):
    """Whatever is in its folder, and with other threads and another number of jobs too."""
    results = tmp_path / 'results.jsonl'
    common = (trained, '--results', results, '--device', 'cpu', '--seeds', 0, '--recipes', 'kd')
    (folder,) = (tmp_path / 'work_dirs/benchmarks/tiny').glob('kd_seed0_*')
    weights = read_checkpoint(str(folder / 'iter_2.pth'), '')['state_dict']
    teacher, _, first = results.read_text().splitlines()
    results.write_text(teacher + '\n')
    monkeypatch.setenv('OMP_NUM_THREADS', '2')
    monkeypatch.setenv('ATEN_CPU_CAPABILITY', 'default')
    assert run(*common, '--jobs', 3) == 0
    assert 'resumed' not in (folder / 'console.log').read_text()
    again = read_checkpoint(str(folder / 'iter_2.pth'), '')['state_dict']
    assert all(torch.equal(value, again[name]) for name, value in weights.items())
    same = ('arithmetic', 'files', 'mAP', 'config_hash')
    ours, theirs = lines(results)[-1], json.loads(first)
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}


def test_a_line_says_which_files_were_read(run, trained, tmp_path):
    results = tmp_path / 'results.jsonl'
    common = (trained, '--results', results, '--device', 'cpu', '--seeds', 0)
    teacher, baseline, kd = (line['files'] for line in lines(results))
    assert teacher == baseline and set(kd) - set(baseline) == {'teacher'}
    source = Config.fromfile(tmp_path / 'plain.py').train_dataloader.dataset
    annotations = Path(source.data_root) / source.ann_file
    digest = sha256(annotations.read_bytes()).hexdigest()
    name = f'train: {annotations.name}'
    assert baseline[name] == digest[:16]
    # Another image is another experiment, even by the same name.
    before = results.read_text()
    image = annotations.parent / source.data_prefix.img / '0.png'
    image.write_bytes(image.read_bytes() + b'.')
    results.write_text(''.join(line + '\n' for line in before.splitlines()[:2]))
    assert run(*common) == 2  # trains, and refuses to compare
    changed = lines(results)[-1]['files']
    assert changed[name] == kd[name] and changed[f'{name}, images'] != kd[f'{name}, images']


def test_unlike_lines_are_not_compared(run, study, tmp_path, capsys, written):
    """Those of other arithmetic are left out and named; those of other files are refused."""
    results = tmp_path / 'results.jsonl'
    ours = written(study, {'teacher': [0.5], 'baseline': [0.10, 0.14], 'kd': [0.22, 0.24]})
    other = [dict(line, arithmetic='AVX512, 2 threads', mAP=0.9) for line in ours[1:3]]
    old = [dict(line, mAP=0.8) for line in ours[1:]]
    for line in old:
        del line['arithmetic']
    results.write_text(''.join(json.dumps(line) + '\n' for line in [*old, *ours, *other]))
    assert run(study, '--results', results, '--table') == 0
    text = capsys.readouterr().out
    assert [row[1:3] for row in rows_of(text)[2:4]] == [['2', '12.0 ± 25.4'], ['2', '23.0 ± 12.7']]
    assert sorted(map(tuple, rows_of(text)[5:])) == [
        ('baseline', 'AVX2, 1 thread', '10.0', '14.0'),
        ('baseline', 'AVX512, 2 threads', '90.0', '–'),
        ('baseline', f'unrecorded arithmetic on {old[0]["device"]}', '80.0', '80.0'),
        ('kd', 'AVX2, 1 thread', '22.0', '24.0'),
        ('kd', 'AVX512, 2 threads', '90.0', '–'),
        ('kd', f'unrecorded arithmetic on {old[0]["device"]}', '80.0', '80.0'),
    ]
    assert 'Trained with AVX2, 1 thread; torch ' in ' '.join(text.split())
    ours[-1]['files'] = dict(ours[-1]['files'], weights='another')
    results.write_text(''.join(json.dumps(line) + '\n' for line in ours))
    assert run(study, '--results', results, '--table') == 2
    error = capsys.readouterr().err
    assert 'runs of tiny have read different files named weights and cannot be compared' in error


def test_verify_trains_again_and_compares(run, trained, tmp_path, capsys, monkeypatch):
    study, results = trained, tmp_path / 'results.jsonl'
    common = (study, '--results', results, '--device', 'cpu')
    before = results.read_text()
    capsys.readouterr()
    assert run(*common, '--verify', 2) == 0
    text = capsys.readouterr().out
    assert text.count('identical to the published run') == 2
    assert '2 of 2 runs reproduced' in text
    assert results.read_text() == before
    assert run(*common, '--verify', 3) == 2
    assert '--verify: must be from 1 to 2' in capsys.readouterr().err
    # Lines that this machine does not give: near enough or not, and of other files.
    real = lines(results)
    spread = [dict(real[1], seed=seed, mAP=mAP) for seed, mAP in ((1, 0.01), (2, 0.02))]
    loaded = module_of(monkeypatch)['Study'](study, Path('work_dirs'))
    for line, one in zip(spread, loaded.runs(['baseline'], [1, 2]), strict=True):
        line['config_hash'] = one.digest

    def verify(**changes):
        mended = [*real[:1], dict(real[1], **changes), *spread, *real[2:]]
        results.write_text(''.join(json.dumps(line) + '\n' for line in mended))
        return run(*common, '--verify', 1, '--recipes', 'baseline', '--seeds', 0)

    assert verify(mAP=0.03) == 0
    assert 'published 3.0, in the 99 % prediction interval ' in capsys.readouterr().out
    for line in spread:
        line['mAP'] += 0.9
    assert verify(mAP=0.93) == 2
    assert 'published 93.0, outside the 99 % prediction interval ' in capsys.readouterr().err
    files = dict.fromkeys(real[1]['files'], 'another')
    results.write_text(''.join(json.dumps(line | dict(files=files)) + '\n' for line in real))
    assert run(*common, '--verify', 1, '--recipes', 'baseline') == 2
    assert 'read other files than the published run: ' in capsys.readouterr().err


def test_a_training_that_fails_is_named_and_the_others_go_on(run, study, tmp_path, capsys):
    results = tmp_path / 'results.jsonl'
    study.write_text(study.read_text().replace('loss_kd_cls.tau', 'loss_kd_cls.temperature'))
    assert run(study, '--results', results, '--device', 'cpu', '--seeds', 0, '--jobs', 2) == 2
    assert [line['recipe'] for line in lines(results)] == ['teacher', 'baseline']
    error = capsys.readouterr().err
    assert '1 training runs failed: kd, seed 0: ' in error and 'temperature' in error


def test_the_table_compares_independent_runs(run, study, tmp_path, capsys, written):
    """Means, intervals and Welch's test, against scipy's own; results of other configs do not count."""
    results = tmp_path / 'results.jsonl'
    base = [0.10, 0.14, 0.11, 0.12, 0.15, 0.09, 0.13, 0.12]
    ours = [0.22, 0.24, 0.20, 0.25, 0.21, 0.23, 0.26, 0.22, 0.24]
    text = written(study, {'teacher': [0.5], 'baseline': base, 'kd': ours})
    text.append(dict(text[-1], config_hash='old', mAP=0.9))
    text.append(dict(text[-1], study='other', config_hash='x', mAP=0.9))

    def table(lines):
        results.write_text(''.join(json.dumps(line) + '\n' for line in lines))
        assert run(study, '--results', results, '--table') == 0
        out = capsys.readouterr().out
        return {row[0]: row[1:] for row in rows_of(out)}, out

    rows, out = table(text)
    percent = [[100 * value for value in side] for side in (ours, base)]
    found = stats.ttest_ind(*percent, equal_var=False)
    low, high = found.confidence_interval(0.95)
    gain, gap = (low + high) / 2, 50 - 12
    assert (rows['kd'][0], rows['baseline'][0]) == ('9', '8')
    assert rows['kd'][1].startswith('23.0 ± ')
    assert rows['kd'][4:] == [
        f'{gain:+.1f} ± {(high - low) / 2:.1f}',
        '< 0.001',
        f'{100 * gain / gap:.0f} % of {gap:.1f}',
    ]
    assert rows['baseline'][4:] == ['–', '–', '–']
    correlation = stats.pearsonr(base, ours[:8]).statistic
    assert f'seeds is {correlation:+.2f} on average' in ' '.join(out.split())
    # In another order of the seeds the gain is the same: they are no pairs.
    turned = written(study, {'teacher': [0.5], 'baseline': base[::-1], 'kd': ours})
    assert table(turned)[0] == rows
    # Of seven runs there is nothing to say.
    few, out = table(written(study, {'teacher': [0.5], 'baseline': base[:7], 'kd': ours}))
    assert few['kd'][4:] == ['–', '–', '–'] and 'Gains are shown from 8 runs on' in ' '.join(
        out.split()
    )


def test_several_recipes_are_several_comparisons(run, study, tmp_path, capsys, written):
    """One that gains by chance once in thirty times does not where twenty were tried."""
    text = study.read_text().rstrip().removesuffix(')')
    kd = f"dict(config='{tmp_path}/distilled.py', options={{'train_cfg.max_iters': "
    study.write_text(text + f"    **{{f'other-{{i}}': {kd}3 + i}}) for i in range(19)}},\n)\n")
    base, ours = [0.10, 0.14, 0.11, 0.12] * 2, [0.12, 0.17, 0.13, 0.15] * 2
    others = {f'other-{i}': base for i in range(19)}
    lines = written(study, {'baseline': base, 'kd': ours, **others})
    results = tmp_path / 'results.jsonl'
    results.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    assert run(study, '--results', results, '--table') == 0
    out = capsys.readouterr().out
    (row,) = [row for row in rows_of(out) if row[0] == 'kd']
    p = stats.ttest_ind(base, ours, equal_var=False).pvalue
    assert p < 0.05 and row[6] == f'{20 * p:.3f}'
    assert 'p is adjusted for 20 comparisons (Holm)' in ' '.join(out.split())


def test_other_conditions_have_baselines_of_their_own(run, study, tmp_path, capsys, written):
    """And what another study has run of the same config and seed is not run again."""
    text = study.read_text()
    short = "options={'train_cfg.max_iters': 1}, against='baseline-short'"
    added = f"""    **{{
        'baseline-short': dict(config='{tmp_path}/plain.py', {short}),
        'kd-short': dict(config='{tmp_path}/distilled.py', {short}),
    }},
"""
    other = tmp_path / 'other.py'
    other.write_text(text.rstrip().removesuffix(')') + added + ')\n')
    scatter = [0.01 * i for i in range(8)]
    given = {
        name: [mean + value for value in scatter]
        for name, mean in {
            'baseline': 0.1,
            'kd': 0.22,
            'baseline-short': 0.02,
            'kd-short': 0.05,
        }.items()
    }
    shared = written(
        study, {'teacher': [0.5], **{name: given[name] for name in ('baseline', 'kd')}}
    )
    own = written(other, {name: given[name] for name in ('baseline-short', 'kd-short')})
    results = tmp_path / 'results.jsonl'
    results.write_text(''.join(json.dumps(line) + '\n' for line in shared + own))
    seeds = ('--seeds', *range(8), '--device', 'cpu')
    assert run(other, '--results', results, *seeds) == 0  # trains nothing
    assert len(lines(results)) == len(shared + own)
    cells = {row[0]: row[5] for row in rows_of(capsys.readouterr().out)}
    assert cells['kd'].startswith('+12.0 ± ') and cells['kd-short'].startswith('+3.0 ± ')
    assert cells['baseline'] == cells['baseline-short'] == '–'


def test_mistakes_are_one_line(run, study, capsys):
    assert run('nothing') == 2
    error = capsys.readouterr().err
    assert 'STUDY: must be ' in error and ' detr,' in error and 'got nothing' in error
    assert run(study, '--recipes', 'kq', '--table') == 2
    assert f"{study}: no recipe 'kq'; near: kd" in capsys.readouterr().err
    for option in ('--jobs', '--threads'):
        assert run(study, option, 0) == 2
        assert f'{option}: must be at least 1, got 0' in capsys.readouterr().err
    study.write_text('seeds = (0,)\nrecipes = dict(a=1)\n')
    assert run(study, '--table') == 2
    assert 'missing: teacher' in capsys.readouterr().err


def test_shipped_studies_are_of_shipped_configs():
    for path in (SCRIPT.parent / 'studies').glob('*.py'):
        study = Config.fromfile(path)
        for settings in (study.teacher, *study.recipes.values()):
            cfg = Config.fromfile(SCRIPT.parents[1] / settings.config)
            cfg.merge_from_dict(dict(settings.get('options') or {}))
        assert len(study.seeds) >= 3 and 'baseline' in study.recipes


def test_the_page_shows_what_the_results_give(monkeypatch, tmp_path):
    """Every shipped study's table, made anew from the results that are committed with it."""
    monkeypatch.chdir(SCRIPT.parents[1])
    module = module_of(monkeypatch)
    page = (SCRIPT.parents[1] / 'docs/recipes/results.md').read_text()
    for path in (SCRIPT.parent / 'studies').glob('*.py'):
        study = module['Study'](path, Path('work_dirs/benchmarks'))
        results = module['Results'](SCRIPT.parent / 'results.jsonl', path.stem)
        if not results.lines:
            continue  # declared, and not run so far
        steps = module['Steps'](SCRIPT.parent / 'steps.jsonl', path.stem)
        table = module['compare'](study, results, steps)
        assert table in page
        rows = rows_of(table.split('\n\n')[0])[2:]
        assert {row[0] for row in rows} <= set(study.settings.recipes)
        assert all(row[5] == '–' for row in rows if int(row[1]) < 8)
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
        f"teacher = dict(config='{tmp_path}/plain.py', seed=99)",
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
    module = module_of(monkeypatch)

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
    assert f'{given}: teacher.sha256: {path} has another checksum' in capsys.readouterr().err
    path.unlink()
    assert run(*common) == 2
    error = capsys.readouterr().err
    assert f'{given}: teacher.checkpoint: no file {path}; set MMKD_WEIGHTS' in error
    assert not (tmp_path / 'results.jsonl').exists()


def test_weights_lie_where_the_environment_says(study, monkeypatch, tmp_path):
    """Where they lie is no part of the experiment; which they are, is."""
    module = module_of(monkeypatch)
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
