"""Select the teacher outputs to store: those that the losses read."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from ..alignments import ClassMap
from ..alignments.queries import QueryAlignment
from ..errors import ConfigError
from ..families import Family
from ..recorder import Source
from ..types import Detector
from .contents import Content
from .maps import MapContent
from .priors import DenseContent, PriorContent, RPNContent
from .proposals import ProposalContent
from .queries import QueryContent

KINDS: dict[str, type[Content]] = {
    each.kind: each
    for each in (QueryContent, ProposalContent, DenseContent, RPNContent, MapContent)
}
# Number of stored priors per image; docs/cache.md lists the size on disk.
NUM_PRIORS = 256


def contents_for(
    entries: Iterable[Any],
    name: str,
    detector: Detector,
    family: Family,
    class_map: ClassMap | None = None,
    scale: float = 1.0,
    num_priors: int = NUM_PRIORS,
) -> list[Content]:
    """Return the contents that store the teacher outputs that losses read, one per kind.

    Args:
        entries: The loss entries, checked against both models.
        name: The name of the teacher.
        detector: The teacher.
        family: The family of the teacher.
        class_map: The map between the classes, if a loss reads classes.
        scale: Size of the teacher's images relative to the student's.
        num_priors: Number of priors of a dense head to store per image; for an RPN, four times as many.

    Raises:
        ConfigError: A loss reads an output that cannot be stored.
    """
    found: dict[str, list[Source]] = {}
    layers: set[int] = set()
    for entry in entries:
        if name not in entry.aligns:
            continue
        align = entry.aligns[name]
        with entry.prefix_errors():
            for source in entry.teacher_sources(name):
                of_source = _content_class(source, family)
                if of_source is MapContent and not math.log2(scale).is_integer():
                    raise ConfigError(
                        f'maps can be stored in a cache only if teacher.scale is a power of two, got '
                        f'{scale:g}; set teacher.scale'
                    )
                if of_source is ProposalContent and family.options.get('proposals') != 'teacher':
                    raise ConfigError(
                        f"'{source}' cannot be stored in a cache: it is computed on the student's proposals, "
                        f"which differ in each step; set teacher.proposals='teacher'"
                    )
                found.setdefault(of_source.kind, []).append(source)
            if isinstance(align, QueryAlignment):
                layers |= {theirs for _, theirs in align.layer_pairs}
    contents = []
    for kind, sources in found.items():
        settings: dict[str, Any] = {}
        if kind == QueryContent.kind:
            settings['layers'] = sorted(layers) or [detector.decoder.num_layers - 1]
        if issubclass(KINDS[kind], PriorContent):
            of_rpn = kind == RPNContent.kind
            classes = [0] if of_rpn else list(range(family.num_classes() or 1))
            if class_map is not None and not of_rpn:
                classes = sorted(class_map.teacher_index)
            settings.update(num_priors=num_priors * (4 if of_rpn else 1), classes=classes)
        contents.append(KINDS[kind](detector, family, list(dict.fromkeys(sources)), **settings))
    return contents


def restored_contents(
    described: dict[str, dict[str, Any]], detector: Detector, family: Family
) -> list[Content]:
    """Return the contents that the manifest of a cache describes."""
    contents = []
    for kind, settings in described.items():
        sources = [Source.parse(source) for source in settings['sources']]
        others = {key: value for key, value in settings.items() if key != 'sources'}
        contents.append(KINDS[kind](detector, family, sources, **others))
    return contents


def _content_class(source: Source, family: Family) -> type[Content]:
    for kind in KINDS.values():
        if kind.can_store(source, family):
            return kind
    raise ConfigError(
        f"'{source}' of a {type(family.detector).__name__} cannot be stored in a cache, which supports class "
        f'scores and boxes of decoder queries, proposals and priors, and maps of backbone and neck; train '
        f'with the live teacher (without teacher.cache)'
    )
