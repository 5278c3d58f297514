"""Every public class has an example in its docstring, and the example runs."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re

import pytest
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope

import mmkd

# Modules beside the packages; their public classes are those they define.
MODULES = ('mmkd.connectors', 'mmkd.f1_metric', 'mmkd.recorder')
SECTION = re.compile(r'^ *Examples:\n(?P<text>.*)', re.S | re.M)


def public_classes() -> dict[str, type]:
    """The classes that packages list in ``__all__``, and those of MODULES, by path."""
    found = {}
    packages = [each.name for each in pkgutil.iter_modules(mmkd.__path__, 'mmkd.') if each.ispkg]
    for name in packages:
        package = importlib.import_module(name)
        for each in getattr(package, '__all__', ()):
            found[f'{name}.{each}'] = getattr(package, each)
    for name in MODULES:
        for each, value in vars(importlib.import_module(name)).items():
            if getattr(value, '__module__', None) == name and not each.startswith('_'):
                found[f'{name}.{each}'] = value
    return {name: each for name, each in found.items() if inspect.isclass(each)}


CLASSES = public_classes()


@pytest.fixture
def plain_interpreter(monkeypatch, tmp_path):
    """An empty folder and no default scope, as for a user who starts Python."""
    monkeypatch.chdir(tmp_path)
    loggers = dict(MMLogger._instance_dict)
    DefaultScope._instance_dict.clear()
    yield
    MMLogger._instance_dict.clear()
    MMLogger._instance_dict.update(loggers)


def test_the_classes_are_found():
    assert {'mmkd.losses.CWD', 'mmkd.recorder.Recorder', 'mmkd.hooks.DistillationHook'} <= {
        *CLASSES
    }


@pytest.mark.usefixtures('plain_interpreter')
@pytest.mark.parametrize('name', CLASSES)
def test_the_example_of_a_class_runs(name):
    # Not inspect.getdoc, which takes a parent's docstring for a class without its own.
    docstring = inspect.cleandoc(CLASSES[name].__dict__.get('__doc__') or '')
    section = SECTION.search(docstring)
    assert section, f'{name} has no section `Examples:` in its docstring'
    known = {
        CLASSES[name].__name__: CLASSES[name]
    }  # all else must be imported, as a reader would do
    example = doctest.DocTestParser().get_doctest(section['text'], known, name, None, None)
    assert example.examples, (
        f'{name} has an `Examples:` section without a line that begins with >>>'
    )
    printed: list[str] = []
    results = doctest.DocTestRunner(verbose=False).run(example, out=printed.append)
    assert not results.failed, ''.join(printed)
