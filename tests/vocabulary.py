"""Words that mmkd's texts avoid, with the field's term for each: ``make lint`` runs this file.

Reads Markdown pages, and comments, docstrings and messages of Python files. Prints a line per finding and
ends with exit code 1 if there are any.
"""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Pattern, and what to write instead. Case does not count; a space stands for any white space.
AVOIDED = {
    r'pictures?': 'image (in the docs: figure)',
    r'(?:at|of|in) (?:a|each|every|the same) place': 'position',
    r'(?<!\.)places': 'positions, locations',  # `.places` is a field of cache files
    r'way back': 'backward pass',
    r'(?:a|each|every|one) training(?=\W*$|[.,;:)]| (?:that|which|of|with|in|is|does|for|and|on|by|from)\b)': 'training run',
    r'trainings': 'training runs',
    r'made again': 'reproduce with',
    r'reckon\w*': 'estimated',
    r'brought (?:over|to)|brings? (?:over|to)': 'converted, mapped, transformed to',
    r'hands? (?:on|down)': 'passes, returns, stores',
    r'likeliest': 'top-scoring',
    r'surer|surest': 'more confident',
    r'beyond chance': 'significant (p = …)',
    r'drawn (?:pictures?|images?)': 'synthetic images',
    r'across and down': 'channels, spatial',
    r'what learns': 'weights, parameters',
    r'whose it is': 'which teacher this loss uses',
    r'lies? not in|no \w+ fits': 'must be in …, got …',
    r'(?:a|per) step a|an image a': 'per step, per image',
    r'edges of boxes': 'box-edge distribution',
    r'blamed?': 'name the entry in the message',
}
PATTERN = re.compile(
    '|'.join(
        rf'(?P<w{index}>\b(?:{pattern})\b)'.replace(' ', r'\s+')
        for index, pattern in enumerate(AVOIDED)
    ),
    re.IGNORECASE,
)


def files() -> Iterator[Path]:
    """The files whose words count."""
    yield from ROOT.glob('*.md')
    yield from ROOT.glob('docs/**/*.md')
    for folder in ('mmkd', 'tools', 'configs', 'benchmarks', 'docs'):
        yield from (ROOT / folder).rglob('*.py')


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """The texts of a file, each with the number of its first line: paragraphs, comments, strings."""
    content = path.read_text(encoding='utf-8')
    if path.suffix == '.md':
        number = 1
        for part in re.split(r'(\n\s*\n)', content):
            yield number, part
            number += part.count('\n')
        return
    comment: list[str] = []
    first = 0
    for token in tokenize.generate_tokens(io.StringIO(content).readline):
        if token.type == tokenize.COMMENT:
            first = first if comment else token.start[0]
            comment.append(token.string.lstrip('# '))
        elif token.type not in (tokenize.NL, tokenize.NEWLINE):
            if comment:
                yield first, ' '.join(comment)
                comment = []
            if token.type == tokenize.STRING or tokenize.tok_name[token.type] == 'FSTRING_MIDDLE':
                yield token.start[0], token.string


def findings(text: str) -> Iterator[tuple[int, str, str]]:
    """The avoided words of a text: line within it, the words, and what to write instead."""
    for found in PATTERN.finditer(text):
        index = int(found.lastgroup[1:])
        yield text.count('\n', 0, found.start()), found[0], list(AVOIDED.values())[index]


def main() -> int:
    count = 0
    for path in sorted(set(files())):
        name = path.relative_to(ROOT).as_posix()
        for number, text in texts(path):
            for line, words, instead in findings(text):
                count += 1
                words = ' '.join(words.split())
                print(f'{name}:{number + line}: "{words}"; write: {instead}')
    return bool(count)


if __name__ == '__main__':
    sys.exit(main())
