"""What the site adds to the pages: command-line help, links to source files, Sphinx roles in docstrings.

mkdocs calls the functions (``hooks`` in mkdocs.yml), griffe the extension.
"""

from __future__ import annotations

import ast
import logging
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe

log = logging.getLogger('mkdocs.hooks.site')  # its warnings fail a strict build
ROOT = Path(__file__).resolve().parents[1]
COMMANDS = '<!-- help of all commands -->'
# A page that is a file of the repository's root.
INCLUDE = re.compile(r'<!-- file (\S+) -->')
LINK = re.compile(r'(?<!!)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)]*)?\)')
ROLE = re.compile(r':(?:class|func|meth|mod|attr|data):`~?([^`]+)`')
# A formula ends at the first blank line.
MATH = re.compile(r'^([ \t]*)\.\. math::\s*(.*?)(?=\n[ \t]*\n|\Z)', re.M | re.S)
INLINE_MATH = re.compile(r':math:`([^`]+)`')


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Fill in the help of the commands, and turn links that leave ``docs/`` into links to the repository."""
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, help_of_commands())
    folder = source = Path(page.file.abs_src_path).parent
    included = INCLUDE.fullmatch(markdown.strip())
    if included:
        markdown, source = (ROOT / included[1]).read_text(encoding='utf-8'), ROOT
    docs = Path(config.docs_dir).resolve()

    def replace(link: re.Match[str]) -> str:
        target = (source / link[2]).resolve()
        if not target.exists():
            return link[0]  # mkdocs reports it
        if target.is_relative_to(docs):
            return f'[{link[1]}]({os.path.relpath(target, folder)}{link[3] or ""})'
        inside = {'CHANGELOG.md': 'changelog.md', 'CONTRIBUTING.md': 'contributing.md'}
        path = target.relative_to(ROOT).as_posix()
        if path in inside:
            return f'[{link[1]}]({os.path.relpath(docs / inside[path], folder)}{link[3] or ""})'
        if config.repo_url:
            kind = 'tree' if target.is_dir() else 'blob'
            return f'[{link[1]}]({config.repo_url.rstrip("/")}/{kind}/main/{path})'
        return link[1] if link[1].startswith('`') else f'{link[1]} (`{path}`)'

    return LINK.sub(replace, markdown)


def on_post_build(config: Any) -> None:
    """Warn of public classes and functions that no page documents."""
    packed = (Path(config.site_dir) / 'objects.inv').read_bytes().split(b'zlib.\n', 1)[1]
    documented = {line.split()[0] for line in zlib.decompress(packed).decode().splitlines()}
    package = griffe.load('mmkd', search_paths=[ROOT])
    for module in package.modules.values():
        for name in module.exports or ():
            kind = module[str(name)].kind
            path = f'{module.path}.{name}'
            if kind in (griffe.Kind.CLASS, griffe.Kind.FUNCTION) and path not in documented:
                log.warning('%s is public, but on no page of docs/reference/', path)


def help_of_commands() -> str:
    """A section per tool, as ``python -m mmkd TOOL -h`` prints it."""
    sections = []
    for script in sorted((ROOT / 'tools').rglob('*.py'), key=lambda script: script.stem):
        if script.stem.startswith('_'):
            continue
        summary = (ast.get_docstring(ast.parse(script.read_text())) or '').splitlines()[0]
        shown = subprocess.run(
            [sys.executable, str(script), '-h'],
            capture_output=True,
            text=True,
            check=True,
            env=dict(os.environ, COLUMNS='96', NO_COLOR='1'),
        ).stdout
        shown = shown.replace(f'usage: {script.name}', f'usage: python -m mmkd {script.stem}')
        sections.append(f'## {script.stem}\n\n{summary}\n\n```text\n{shown.rstrip()}\n```\n')
    return '\n'.join(sections)


class SphinxRoles(griffe.Extension):
    """Cross-references and formulas of docstrings, which are written for editors, as Markdown."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        """Translate all docstrings once the whole package is read, and warn of dead references."""
        for obj in everything_in(pkg):
            if obj.docstring:
                obj.docstring.value = self.translate(obj.docstring.value, obj, loader)

    def translate(self, text: str, obj: griffe.Object, loader: griffe.GriffeLoader) -> str:
        """Markdown of a docstring.

        Args:
            text: The docstring.
            obj: The object it belongs to; names are looked up where it is defined.
            loader: What has been read.
        """

        def link(role: re.Match[str]) -> str:
            try:
                path = obj.resolve(role[1])
            except griffe.NameResolutionError:
                path = role[1]
            try:
                loader.modules_collection[path]
            except KeyError:
                if path.startswith('mmkd') or '.' not in path:
                    log.warning('%s: no %s, which its docstring refers to', obj.path, role[1])
                return f'`{role[1]}`'
            # Internal names have no page: they stay text.
            return f'<autoref identifier="{path}" optional><code>{role[1]}</code></autoref>'

        text = INLINE_MATH.sub(r'$\1$', ROLE.sub(link, text))
        return MATH.sub(lambda found: f'{found[1]}$${" ".join(found[2].split())}$$', text)


def everything_in(obj: griffe.Object) -> Iterator[griffe.Object]:
    """An object and all that is defined below it."""
    yield obj
    for member in obj.members.values():
        if not member.is_alias:
            yield from everything_in(member)
