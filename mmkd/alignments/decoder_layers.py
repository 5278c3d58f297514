"""The corresponding layers of two decoders."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConfigError


def layer_map(student: int, teacher: int, layers: str | Sequence = 'all') -> list[tuple[int, int]]:
    """Return the corresponding layers of two decoders, counted from 0.

    Args:
        student: Number of the student's layers.
        teacher: Number of the teacher's layers.
        layers: See :class:`mmkd.alignments.queries.QueryAlignment`.

    Returns:
        Pairs (student layer, teacher layer). Layer i of S is paired with layer ceil(i T / S) of T, both
        counted from 1. With 3 and 6 layers, the first is paired with the second, and the last with the last.

    Raises:
        ConfigError: A layer does not exist.
    """

    def default(layer: int) -> int:
        return -(-(layer + 1) * teacher // student) - 1

    if isinstance(layers, str):
        if layers not in ('all', 'last'):
            raise ConfigError(f"align.layers: must be 'all', 'last' or a list, got {layers!r}")
        chosen = range(student) if layers == 'all' else [student - 1]
        return [(layer, default(layer)) for layer in chosen]
    pairs = []
    for layer in layers:
        ours, theirs = layer if isinstance(layer, (list, tuple)) else (layer, None)
        for owner, index, count in (('student', ours, student), ('teacher', theirs, teacher)):
            if index is not None and not -count <= index < count:
                raise ConfigError(
                    f'align.layers: must name decoder layers of the {owner}, 0 to {count - 1}, got '
                    f'{index} in {list(layers)}'
                )
        ours %= student
        pairs.append((ours, default(ours) if theirs is None else theirs % teacher))
    if not pairs:
        raise ConfigError('align.layers: must name at least one layer, got []')
    return pairs
