"""mmkd/compat.py, against stacks of empty packages with the right names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
FITS = dict(torch='2.13.0', mmengine='0.10.12', mmcv='2.3.6', mmdet='3.5.1')
CHECK = """
import sys, types
package = types.ModuleType('mmkd')  # without its __init__, which imports far more than the stack
package.__path__ = [sys.argv[1]]
sys.modules['mmkd'] = package
from mmkd.compat import StackError, check_stack
try:
    check_stack()
except StackError as error:
    assert isinstance(error, ImportError)
    print(error)
"""


def check(folder: Path, ops: str | None = '', **versions: str | None) -> str:
    """What check_stack says; a version None leaves the package out, ``ops`` is mmcv.ops' source."""
    for name, version in (FITS | versions).items():
        if version is None:
            continue
        (folder / name).mkdir()
        text = version if version.startswith('raise') else f'__version__ = {version!r}\n'
        (folder / name / '__init__.py').write_text(text)
    if ops is not None and (folder / 'mmcv').is_dir():
        (folder / 'mmcv/_ext.py').write_text('')
        (folder / 'mmcv/ops.py').write_text(ops)
    command = [
        sys.executable,
        '-I',
        '-S',
        '-c',
        f'import sys; sys.path.insert(0, {str(folder)!r}){CHECK}',
    ]
    run = subprocess.run(
        [*command, str(REPOSITORY / 'mmkd')], capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


def test_both_families_of_distributions_fit(tmp_path):
    assert check(tmp_path) == ''


def test_openmmlab_fits(tmp_path):
    assert check(tmp_path, mmengine='0.10.7', mmcv='2.1.0', mmdet='3.3.0') == ''


@pytest.mark.parametrize('name', FITS)
def test_absent_package_says_what_to_install(tmp_path, name):
    message = check(tmp_path, **{name: None})
    assert f'mmkd needs {name}' in message
    assert 'pip install --no-build-isolation "mmkd[onedl]"' in message


@pytest.mark.parametrize(
    ('name', 'version'),
    [('mmdet', '2.28.2'), ('mmdet', '4.0.0'), ('mmcv', '1.7.1'), ('mmengine', '0.9.0')],
)
def test_unsupported_version_is_named(tmp_path, name, version):
    message = check(tmp_path, **{name: version})
    assert f'mmkd supports {name} >= ' in message
    assert f'{version} is installed' in message


def test_mmcv_without_ops_is_refused(tmp_path):
    assert 'no compiled ops' in check(tmp_path, ops=None)


def test_mmcv_for_another_torch_is_refused(tmp_path):
    message = check(tmp_path, ops="raise ImportError('undefined symbol: _ZN3c10')")
    assert 'undefined symbol: _ZN3c10' in message
    assert 'another version of torch' in message


def test_mmdet_that_rejects_its_mmcv_is_told_as_it_says_it(tmp_path):
    message = check(tmp_path, mmdet="raise AssertionError('MMCV==2.3.6 is used but incompatible')")
    assert 'MMCV==2.3.6 is used but incompatible' in message


def test_the_stack_of_this_environment_fits():
    from mmkd.compat import check_stack

    check_stack()
