"""Installed copies of the package, as mim's two distributions look at them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
CONFIG = 'faster-rcnn_r50_to_mobilenetv2_voc2012.py'
PIP = ('-m', 'pip', '--disable-pip-version-check', 'install', '-q', '--no-index', '--no-deps')


class Environment:
    """A virtual environment that sees this one's packages and has an mmkd of its own."""

    def __init__(self, folder: Path, editable: bool) -> None:
        self.checkout = folder / 'checkout'
        self.checkout.mkdir(parents=True)
        ignore = shutil.ignore_patterns('__pycache__', '*.egg-info')
        for name in ('mmkd', 'configs', 'tools'):
            shutil.copytree(REPOSITORY / name, self.checkout / name, ignore=ignore)
        for name in ('pyproject.toml', 'setup.py', 'MANIFEST.in', 'README.md', 'LICENSE'):
            shutil.copy(REPOSITORY / name, self.checkout)
        venv.create(folder / 'venv', with_pip=False, symlinks=True)
        self.python = folder / 'venv/bin/python'
        version = f'python{sys.version_info.major}.{sys.version_info.minor}'
        self.site = folder / 'venv/lib' / version / 'site-packages'
        (self.site / 'outer.pth').write_text(sysconfig.get_paths()['purelib'])
        source = ['-e', str(self.checkout)] if editable else [str(self.checkout)]
        self.run(*PIP, '--ignore-installed', '--no-build-isolation', *source)

    def run(self, *arguments: str) -> str:
        env = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
        run = subprocess.run(
            [self.python, *arguments],
            cwd=self.checkout.parent,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    def mim_root(self) -> Path:
        """Where the mim that is installed here takes mmkd to be, by its own function."""
        pytest.importorskip('mim')
        code = 'from mim.utils import get_installed_path; print(get_installed_path("mmkd"))'
        return Path(self.run('-c', code).splitlines()[-1])


@pytest.fixture(scope='module')
def plain(tmp_path_factory) -> Environment:
    return Environment(tmp_path_factory.mktemp('plain'), editable=False)


@pytest.fixture(scope='module')
def editable(tmp_path_factory) -> Environment:
    return Environment(tmp_path_factory.mktemp('editable'), editable=True)


def the_config(root: Path) -> Path:
    """mim searches the whole root by file name and refuses if it finds several."""
    found = list(root.rglob(CONFIG))
    assert len(found) == 1, found
    return found[0]


def the_tool(root: Path, name: str = 'train.py') -> Path:
    """In the order in which `mim train` looks."""
    return next(
        path for path in (root / '.mim/tools' / name, root / 'tools' / name) if path.is_file()
    )


def check_root(environment: Environment, root: Path, real: Path) -> None:
    """Tool and config found under ``root`` must act as the real ones."""
    options = environment.run(str(the_tool(root)), '-h')
    assert '--gpus' in options  # which tells mim how to ask for the CPU
    code = (
        'import os, sys; from mmengine.config import Config\n'
        'found, real = (Config.fromfile(path) for path in sys.argv[1:])\n'
        'assert found.model.type == "Distiller" and found.to_dict() == real.to_dict()\n'
        'assert os.path.isfile(found.model.teacher.config), found.model.teacher.config'
    )
    environment.run('-c', code, str(the_config(root)), str(real))


def test_mim_finds_a_plain_install(plain):
    check_root(plain, plain.mim_root(), plain.site / 'mmkd/.mim/configs' / CONFIG)


def test_mim_finds_an_editable_install(editable):
    check_root(editable, editable.mim_root(), editable.checkout / 'configs' / CONFIG)


def test_openmim_finds_a_plain_install(plain):
    # openmim looks in site-packages/<name>; what it runs there is the content itself.
    root = plain.site / 'mmkd'
    assert the_config(root) == root / '.mim/configs' / CONFIG
    assert '--gpus' in plain.run(str(the_tool(root)), '-h')


def test_openmim_finds_an_editable_install(editable):
    check_root(editable, editable.site / 'mmkd', editable.checkout / 'configs' / CONFIG)


def test_onedl_mim_finds_a_plain_install(plain):
    record = next(plain.site.glob('mmkd-*.dist-info/RECORD')).read_text()
    root = plain.site / record.split('/')[0]
    check_root(plain, root, plain.site / 'mmkd/.mim/configs' / CONFIG)


@pytest.mark.parametrize('kind', ['plain', 'editable'])
def test_the_command_does_what_the_module_does(kind, request):
    """Its script must not hide the package from mim either, which the tests above show."""
    environment = request.getfixturevalue(kind)
    command = environment.python.with_name('mmkd')
    assert any(
        line.startswith('../../../bin/mmkd,')
        for line in next(environment.site.glob('mmkd-*.dist-info/RECORD')).read_text().splitlines()
    )
    runs = []
    for start in ([command], [environment.python, '-m', 'mmkd']):
        for arguments in ([], ['train', '-h'], ['train', 'missing.py'], ['trian']):
            run = subprocess.run(
                [*start, *arguments],
                cwd=environment.checkout.parent,
                env={key: value for key, value in os.environ.items() if key != 'PYTHONPATH'},
                capture_output=True,
                text=True,
                timeout=300,
            )
            runs.append((run.returncode, run.stdout, run.stderr))
    assert [code for code, _, _ in runs[:4]] == [0, 0, 2, 2]
    assert runs[0][1] and '--cfg-options' in runs[1][1] and 'missing.py' in runs[2][2]
    assert runs[:4] == runs[4:]


def test_the_package_itself_is_imported_from_where_it_belongs(plain, editable):
    code = 'import importlib.util; print(importlib.util.find_spec("mmkd").origin)'
    assert plain.run('-c', code).strip() == str(plain.site / 'mmkd/__init__.py')
    assert editable.run('-c', code).strip() == str(editable.checkout / 'mmkd/__init__.py')


def test_types_are_shipped(plain):
    """PEP 561: without the marker, type checkers ignore the annotations of an installed package."""
    assert (plain.site / 'mmkd/py.typed').is_file()


def test_no_second_mmdet_is_pulled_in(plain):
    code = 'from importlib.metadata import requires; print("\\n".join(requires("mmkd")))'
    unconditional = [line for line in plain.run('-c', code).splitlines() if 'extra ==' not in line]
    assert unconditional
    assert not [line for line in unconditional if 'mm' in line or 'torch' in line]


def test_a_second_build_carries_nothing_of_the_first(tmp_path):
    environment = Environment(tmp_path, editable=False)
    (environment.checkout / 'configs' / CONFIG).rename(environment.checkout / 'configs/renamed.py')
    source = ('--force-reinstall', '--no-build-isolation', str(environment.checkout))
    environment.run(*PIP, *source)
    for root in (environment.site / 'mmkd', environment.site / '+mmkd_mim'):
        assert not list(root.rglob(CONFIG))
        assert len(list(root.rglob('renamed.py'))) == 1
