"""``python -m mmkd TOOL …`` runs a tool of the checkout or the installed package.

Without TOOL it lists the tools. Configs are found by name, as with mim.
"""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def tool_folder() -> Path:
    """Return the folder of the tools: inside an installed package, or next to the package in a checkout."""
    packaged = PACKAGE / '.mim' / 'tools'
    return packaged if packaged.is_dir() else PACKAGE.parent / 'tools'


def tools() -> dict[str, Path]:
    """Return the scripts of the tools by name. Files that begin with an underscore are shared code."""
    scripts = sorted(tool_folder().rglob('*.py'), key=lambda script: script.stem)
    return {script.stem: script for script in scripts if not script.stem.startswith('_')}


def main(argv: list[str]) -> int:
    """List the tools, or replace this process by the tool that the arguments name.

    Returns:
        The exit code, if no tool was started.
    """
    found = tools()
    if not argv or argv[0] in ('-h', '--help'):
        print(
            'usage: python -m mmkd TOOL [options]      (python -m mmkd TOOL -h shows its options)\n'
        )
        width = max(map(len, found)) + 2
        for name, script in found.items():
            summary = ast.get_docstring(ast.parse(script.read_text(encoding='utf-8'))) or ''
            print(f'  {name:<{width}}{summary.splitlines()[0] if summary else ""}')
        return 0
    if argv[0] not in found:
        print(
            f'mmkd: error: TOOL: must be one of {", ".join(found)}, got {argv[0]!r}',
            file=sys.stderr,
        )
        return 2
    sys.stdout.flush()
    # A new process: mmengine has already chosen its device here, and `--device cpu` must come first.
    os.execv(sys.executable, [sys.executable, str(found[argv[0]]), *argv[1:]])


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
