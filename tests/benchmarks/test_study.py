"""The runs of a study."""

from __future__ import annotations

import pytest
import study as studies


@pytest.mark.parametrize('name', ['voc_160', 'methods', 'person_dog'])
def test_runs_of_a_recipe_differ_in_nothing_but_the_seed(name, tmp_path):
    study = studies.Study(studies.find_study(name), tmp_path)
    first: dict[str, dict] = {}
    for run in study.runs(None, [0, 1]):
        content = run.config.to_dict()
        assert content.pop('randomness')['seed'] == run.seed
        content.pop('work_dir', None)
        assert first.setdefault(run.recipe, content) == content, run.recipe
    assert first
