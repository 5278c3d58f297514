"""Puts configs and tools where mim looks for them; everything else is in pyproject.toml.

mim's two distributions find an installed package in different ways, and both only read files:

======================  ===============================  ======================================
install                 openmim 0.3.9 looks in           onedl-mim 0.5.1 looks in
======================  ===============================  ======================================
``pip install .``       ``site-packages/mmkd/``          the folder of RECORD's first line
``pip install -e .``    ``site-packages/mmkd/``          the checkout
======================  ===============================  ======================================

So a plain install carries configs and tools in ``mmkd/.mim``, plus a folder ``+mmkd_mim``. Installers
sort RECORD, and ``+`` sorts before the ``../../../bin/mmkd`` of the command (``tools/mmkd``), so the folder
comes first. If its name began with ``_`` or a letter, the command would come first, and onedl-mim would
search ``site-packages/..`` for configs. ``+mmkd_mim``, and ``mmkd/.mim`` in the site-packages of an editable
install, hold nothing of their own: each file points to the real one.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM_FOLDER = '+mmkd_mim'  # sorts before '..': the first line of RECORD is in it

CONFIG_POINTER = """\
# Stands here for mim, which looks for configs in this folder; the config itself is the file below.
_base_ = {target!r}
"""
TOOL_POINTER = """\
\"\"\"Stands here for mim, which looks for tools in this folder; runs the tool itself.\"\"\"
import runpy
import sys
from pathlib import Path

if __name__ == '__main__':
    tool = (Path(__file__).resolve().parent / {target!r}).resolve()
    sys.path[0], sys.argv[0] = str(tool.parent), str(tool)
    runpy.run_path(str(tool), run_name='__main__')
"""


class BuildWithMim(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            # The tree that becomes the editable wheel; build_lib is not part of it.
            wheel = Path(self.get_finalized_command('install').install_lib)
            write_pointers(wheel / 'mmkd' / '.mim', ROOT, relative=False)
            return
        build = Path(self.build_lib)
        for part in ('configs', 'tools'):
            shutil.rmtree(build / 'mmkd' / '.mim' / part, ignore_errors=True)  # of an earlier build
            shutil.copytree(
                ROOT / part,
                build / 'mmkd' / '.mim' / part,
                ignore=shutil.ignore_patterns('__pycache__', 'setup_venv.sh', 'mmkd'),
            )
        write_pointers(build / MIM_FOLDER, build / 'mmkd' / '.mim', relative=True)


def write_pointers(folder: Path, source: Path, relative: bool) -> None:
    """Write a pointer into ``folder`` for each config and tool of ``source``."""
    shutil.rmtree(folder, ignore_errors=True)
    for part, text in (('configs', CONFIG_POINTER), ('tools', TOOL_POINTER)):
        for path in sorted((source / part).rglob('*.py')):
            inside = path.relative_to(source)
            if path.name.startswith('_') or '_base_' in inside.parts:
                continue  # shared code and bases: never named on a command line
            pointer = folder / inside
            pointer.parent.mkdir(parents=True, exist_ok=True)
            target = os.path.relpath(path, pointer.parent) if relative else str(path)
            pointer.write_text(text.format(target=target), encoding='utf-8')


setup(cmdclass={'build_py': BuildWithMim})
