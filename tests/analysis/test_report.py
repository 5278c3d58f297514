"""Rows, pairs, gains and pages, on work directories of real trainings."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from scipy import stats
from tiny_runs import copied, edit_log, set_scores

from mmkd.analysis.complexity import count_parameters, load_detector
from mmkd.analysis.page import HEAD, describe, format_csv, format_rows
from mmkd.analysis.pairing import assign_roles
from mmkd.analysis.rows import add_costs, add_f1, read_rows
from mmkd.errors import ConfigError, MissingFileError

SEEDS = ('student_seed0', 'student_seed1', 'distilled_seed0', 'distilled_seed1')


@pytest.fixture
def scored(runs, tmp_path):
    """Copies with metrics by which gains can be told by hand; the teacher is still found in `runs`."""
    given = dict(zip(SEEDS, (0.10, 0.14, 0.22, 0.24), strict=True))
    for name, score in given.items():
        set_scores(copied(runs, name, tmp_path / name), mAP=score, AP50=2 * score, F1=0.3)
    set_scores(copied(runs, 'teacher', tmp_path / 'teacher'), mAP=0.5, AP50=0.7, F1=0.6)
    for path in tmp_path.glob('*/**/*.py'):  # the teacher moved too
        path.write_text(path.read_text().replace(f'{runs}/teacher/', f'{tmp_path}/teacher/'))
    return tmp_path


def rows_of(folder, *names, **options):
    """By their names."""
    rows = assign_roles(read_rows([folder / name for name in names]), **options)
    return {row.name: row for row in rows}


def cells(line):
    return [cell.strip() for cell in line.strip('|').split('|')]


def test_roles_gain_and_gap_of_single_runs(scored):
    rows = rows_of(scored, 'distilled_seed0', 'student_seed0', 'teacher')
    assert [row.role for row in rows.values()] == ['teacher', 'baseline', 'distilled']
    row = rows['distilled_seed0']
    assert (row.teacher, row.baseline) == (rows['teacher'], rows['student_seed0'])
    gain, half = row.gain()
    assert gain == pytest.approx(0.12) and half != half
    assert row.gap_closed() == pytest.approx(0.12 / 0.40)
    assert row.notes == [] and rows['teacher'].gain() is None


def test_seeds_are_averaged_and_not_compared_in_pairs(scored):
    rows = rows_of(scored, *SEEDS, 'teacher')
    assert set(rows) == {'teacher', 'student', 'distilled'}
    row = rows['distilled']
    assert row.baseline is rows['student'] and len(row.runs) == 2
    found = stats.ttest_ind([0.22, 0.24], [0.10, 0.14], equal_var=False).confidence_interval(0.95)
    assert row.gain() == pytest.approx(((found.low + found.high) / 2, (found.high - found.low) / 2))
    assert row.gap_closed() == pytest.approx(0.11 / (0.5 - 0.12))
    assert row.mean('mAP') == pytest.approx(0.23)

    table = [cells(line) for line in format_rows(list(rows.values())).splitlines()]
    mean = stats.t.interval(0.95, 1, 23, stats.sem([22, 24]))
    found = dict(zip(table[0], table[-1], strict=True))
    assert (found[''], found['runs']) == ('distilled', '2')
    assert found['mAP'] == f'23.0 ± {(mean[1] - mean[0]) / 2:.1f}'
    assert found['gain'] == f'+11.0 ± {100 * row.gain()[1]:.1f}'
    assert found['gap closed'] == f'{100 * 11 / 38:.0f} %'
    assert found['GFLOPs'] == found['ms per image'] == '–'  # nothing was measured

    # A baseline that was trained once has no scatter to compare with.
    gain, half = rows_of(scored, *SEEDS[1:], 'teacher')['distilled'].gain()
    assert gain == pytest.approx(0.23 - 0.14) and half != half


def test_the_same_training_twice_is_refused_but_one_folder_counts_once(runs, tmp_path):
    copy = copied(runs, 'student_seed0', tmp_path / 'again')
    with pytest.raises(ConfigError, match='student_seed0 and .*again are the same run'):
        read_rows([runs / 'student_seed0', copy])
    (row,) = read_rows([runs / 'student_seed0', f'{runs}/data/../student_seed0'])
    assert len(row.runs) == 1


def test_names_that_are_not_unique_are_paths(runs, tmp_path):
    copied(runs, 'teacher', tmp_path / 'short')
    rows = read_rows([tmp_path / 'short', runs / 'short'])
    assert [row.name for row in rows] == [str(tmp_path / 'short'), str(runs / 'short')]


def test_a_baseline_of_another_schedule_is_no_baseline(scored, runs):
    rows = assign_roles(read_rows([scored / 'distilled_seed0', runs / 'short', scored / 'teacher']))
    row = rows[-2]
    assert (row.role, row.baseline, row.gain(), row.gap_closed()) == ('distilled', None, None, None)
    assert row.notes == ['short is not a baseline: train_cfg.max_epochs is 1, here 2']
    assert rows[-1].role == 'other'
    # Unless one says so.
    told = {str(scored / 'distilled_seed0'): str(runs / 'short')}
    paths = [scored / 'distilled_seed0', runs / 'short', scored / 'teacher']
    row = assign_roles(read_rows(paths), baselines=told)[-1]
    assert row.baseline.name == 'short' and row.gain() is not None
    assert row.notes == [
        'baseline short, named by --baseline, differs: train_cfg.max_epochs is 1, here 2'
    ]


def test_what_is_not_there_is_said(scored):
    (row,) = rows_of(scored, 'distilled_seed0').values()
    assert row.notes == [
        'no baseline: no work directory trains its student without distillation',
        f'its teacher is not in this report: {scored}/teacher/epoch_2.pth',
    ]
    assert (row.role, row.gap_closed()) == ('distilled', None)


def test_a_teacher_that_lies_elsewhere_is_known_by_its_config(scored):
    (scored / 'teacher').rename(scored / 'moved')
    rows = rows_of(scored, 'distilled_seed0', 'student_seed0', 'moved')
    row = rows['distilled_seed0']
    assert row.teacher is rows['moved'] and row.gap_closed() == pytest.approx(0.3)
    assert row.notes == [
        f'teacher moved was matched by its config; teacher checkpoint: {scored}/teacher/epoch_2.pth'
    ]


def test_two_that_could_be_the_teacher_are_both_named(scored):
    (scored / 'teacher').rename(scored / 'first')
    other = copied(scored, 'first', scored / 'second')
    for path in other.glob('**/*.py'):
        path.write_text(path.read_text().replace('lr=0.01', 'lr=0.02'))
    names = ('distilled_seed0', 'first', 'second')
    row = rows_of(scored, *names)['distilled_seed0']
    assert row.teacher is None
    assert row.notes[-1] == 'its teacher may be any of first, second; name it with --teacher'
    told = {str(scored / 'distilled_seed0'): str(scored / 'second')}
    assert rows_of(scored, *names, teachers=told)['distilled_seed0'].teacher.name == 'second'


def test_a_teacher_of_other_images_closes_no_gap(scored):
    for path in scored.glob('teacher/**/*.py'):
        path.write_text(path.read_text().replace("'person'", "'cat'"))
    row = rows_of(scored, 'distilled_seed0', 'student_seed0', 'teacher')['distilled_seed0']
    assert row.teacher.role == 'teacher' and row.gap_closed() is None
    assert row.gain()[0] == pytest.approx(0.12)
    assert row.notes == ['teacher teacher is validated on other images or classes']


def test_another_checkpoint_than_the_one_that_taught_is_said(scored):
    edit_log(scored / 'teacher', lambda r: r | {'coco/bbox_mAP': 0.9} if r['step'] == 1 else r)
    paths = [scored / 'teacher', scored / 'distilled_seed0']
    row = assign_roles(read_rows(paths, best=True))[-1]
    assert row.teacher.first.checkpoint.endswith('epoch_1.pth')
    assert row.notes[-1] == 'teacher checkpoint: teacher/epoch_2.pth'


def test_an_unfinished_training_is_shown_without_numbers(scored):
    folder = scored / 'student_seed0'
    (folder / 'epoch_2.pth').unlink()
    (folder / 'last_checkpoint').write_text('epoch_1.pth')
    rows = rows_of(scored, 'distilled_seed0', 'student_seed0', 'teacher')
    assert rows['student_seed0'].notes == ['unfinished: epoch 1 of 2']
    assert rows['distilled_seed0'].notes == ['the baseline student_seed0 is unfinished']
    assert rows['distilled_seed0'].gain() is None
    add_costs(rows.values(), (64, 96), timed=False)
    assert rows['student_seed0'].cost is None
    (line,) = [x for x in format_rows(list(rows.values())).splitlines() if 'student_seed0' in x]
    assert cells(line)[3:] == ['–'] * 8 + ['1 of 2', '–']


@pytest.mark.parametrize(
    ('pairs', 'message'),
    [
        ({'student_seed0': 'teacher'}, 'student_seed0: must be a distilled student'),
        ({'distilled_seed0': 'short'}, 'short: must be one of the work directories'),
        ({'distilled_seed0': 'distilled_seed0'}, 'cannot be compared with itself'),
    ],
)
def test_impossible_pairs_are_refused(runs, pairs, message):
    pairs = {str(runs / key): str(runs / value) for key, value in pairs.items()}
    paths = [runs / name for name in ('student_seed0', 'distilled_seed0', 'teacher')]
    for option in ('teachers', 'baselines'):
        with pytest.raises(ConfigError, match=message):
            assign_roles(read_rows(paths), **{option: pairs})


def test_cost_is_that_of_the_deployed_student(runs):
    rows = rows_of(runs, 'teacher', 'student_seed0', 'distilled_seed0')
    add_costs(rows.values(), (60, 100))
    assert rows['distilled_seed0'].cost.parameters == rows['student_seed0'].cost.parameters
    assert rows['distilled_seed0'].cost.parameters < rows['teacher'].cost.parameters
    run = rows['distilled_seed0'].first
    model = load_detector(run.deployed(), run.checkpoint)
    assert rows['distilled_seed0'].cost.parameters == count_parameters(model)
    for row in rows.values():
        # 60 x 100 becomes 77 x 128 by the pipeline's Resize(128, 96), padded to a multiple of 32.
        assert row.cost.input_size == (96, 128)
        assert row.cost.flops > 0 and row.cost.ms_per_image > 0
    text = describe(list(rows.values()), (60, 100), 'this machine')
    assert '60 x 100 px' in text and '96 x 128 (teacher, student_seed0, distilled_seed0)' in text
    assert 'median on this machine, batch size 1' in text
    assert '- distilled_seed0: teacher teacher, baseline student_seed0.' in text


def test_f1_is_evaluated_where_it_is_missing(runs, tmp_path):
    """And agrees with what a training with the metric logs: the distilled one did."""
    folder = copied(runs, 'distilled_seed0', tmp_path / 'distilled')
    logged = read_rows([folder])[0].first.scores
    edit_log(folder, lambda r: {key: v for key, v in r.items() if key != 'coco/bbox_F1'})
    (row,) = read_rows([folder])
    assert row.values('F1') is None and row.values('mAP') == [logged['mAP']]
    add_f1(row)
    assert row.first.scores == pytest.approx(logged)
    assert row.notes == ['F1 evaluated for this report']
    for path in folder.glob('*/vis_data/config.py'):
        path.write_text(path.read_text().replace(f'{runs}/data', f'{tmp_path}/none'))
    (row,) = read_rows([folder])
    with pytest.raises(MissingFileError, match='none'):
        add_f1(row)


def test_the_page_shows_the_current_columns():
    page = (Path(__file__).parents[2] / 'docs/how_to/compare_runs.md').read_text()
    assert list(HEAD) in [cells(line) for line in page.splitlines() if line.startswith('|')]


def test_csv_holds_the_numbers_as_logged(scored):
    rows = rows_of(scored, *SEEDS, 'teacher')
    add_costs([rows['teacher']], (64, 96), timed=False)
    text = format_csv(list(rows.values()), (64, 96), 'cpu')
    teacher, student, distilled = csv.DictReader(io.StringIO(text))
    assert (teacher['mAP'], teacher['mAP_ci95'], teacher['gain_points']) == ('0.5', '', '')
    assert int(teacher['parameters']) == rows['teacher'].cost.parameters
    assert float(teacher['gflops']) == rows['teacher'].cost.flops / 1e9
    assert (teacher['ms_per_image'], teacher['device']) == ('', '')
    assert float(distilled['gain_points']) == pytest.approx(11)
    assert float(distilled['gap_closed']) == pytest.approx(11 / 38)
    assert (distilled['teacher'], distilled['baseline']) == ('teacher', 'student')
    assert (student['runs'], student['seeds'], student['parameters']) == ('2', '0 1', '')
    assert student['checkpoint'].split() == [
        f'{scored}/student_seed{seed}/epoch_2.pth' for seed in (0, 1)
    ]
