"""tests/vocabulary.py finds what it lists, where people read it, and nothing else."""

from __future__ import annotations

import pytest
import vocabulary


@pytest.mark.parametrize(
    'text',
    [
        'Each picture has a box.',
        'The loss and its way\n    back.',
        'It stops a training.',
        'Boxes are BROUGHT OVER to the view.',
        'Of the likeliest priors',
        'lies not in [0, 1)',
        'forward and a step a batch',
    ],
)
def test_an_avoided_word_is_found(text):
    ((_, _, instead),) = vocabulary.findings(text)
    assert instead in vocabulary.AVOIDED.values()


@pytest.mark.parametrize(
    'text',
    [
        'A training run stops.',
        'an image of a training step',
        'It takes place in the replaced layer.',
    ],
)
def test_the_terms_of_the_field_are_not(text):
    assert not list(vocabulary.findings(text))


def test_comments_docstrings_and_messages_are_read_and_code_is_not(tmp_path, monkeypatch, capsys):
    (tmp_path / 'mmkd').mkdir()
    source = (
        '"""A module."""\n'
        'pictures = 1  # of pictures\n'
        "raise ValueError('no pictures')\n"
        "print(f'{pictures} places')\n"
        '# one line of a comment, made\n'
        '# again below\n'
        'x = pictures\n'
    )
    (tmp_path / 'mmkd/module.py').write_text(source)
    (tmp_path / 'README.md').write_text('Title\n\nA line.\nTwo pictures.\n')
    monkeypatch.setattr(vocabulary, 'ROOT', tmp_path)
    assert vocabulary.main() == 1
    found = [line.split('"')[0] for line in capsys.readouterr().out.splitlines()]
    expected = ['README.md:4: ', *(f'mmkd/module.py:{line}: ' for line in (2, 3, 4, 5))]
    # Before Python 3.12 an f-string is one token, and its fields are read too.
    assert sorted(set(found)) == expected
    (tmp_path / 'mmkd/module.py').write_text('"""A module."""\n')
    (tmp_path / 'README.md').write_text('Title\n')
    assert vocabulary.main() == 0
