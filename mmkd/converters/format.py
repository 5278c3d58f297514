"""Description and conversion of a checkpoint format."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class Format:
    """Maps the names of weights in published files to names in a model of mmkd or MMDetection.

    Attributes:
        names: Name in the file to name in the model, for weights outside of layers.
        layer_names: The same for the weights of each layer, without the prefix and index of the layer.
        layer_prefixes: Prefixes of a layer's index, in the file and in the model.
        optional: Names (of either mapping) that files of this format may lack.
        dropped: Regular expression that matches complete names of weights to drop.
        cut: Regular expression of the parts of names that are removed first.
    """

    names: Mapping[str, str]
    layer_names: Mapping[str, str] = field(default_factory=dict)
    layer_prefixes: tuple[str, str] = ('blocks.', 'layers.')
    optional: frozenset[str] = frozenset()
    dropped: str = r'(?!)'
    cut: str = r'(?!)'

    def match(self, state: Mapping[str, Any]) -> tuple[State, list[str], list[str]]:
        """Convert the names of this format.

        Args:
            state: Weights with the names of the file.

        Returns:
            The weights with the names of the model, the missing names, and the unknown names.
        """
        old_prefix, new_prefix = self.layer_prefixes
        in_layer = re.compile(re.escape(old_prefix) + r'(\d+)\.(.+)')
        converted: State = {}
        unknown: list[str] = []
        there = set()
        depth = 0
        for key, value in state.items():
            name = re.sub(self.cut, '', key)
            if re.fullmatch(self.dropped, name):
                continue
            there.add(name)
            layer = in_layer.fullmatch(name)
            if layer and layer[2] in self.layer_names:
                new: str | None = f'{new_prefix}{int(layer[1])}.{self.layer_names[layer[2]]}'
                depth = max(depth, int(layer[1]) + 1)
            else:
                new = self.names.get(name)
            if new is None or new in converted or not isinstance(value, Tensor):
                unknown.append(key)
            else:
                converted[new] = value
        needed = [name for name in self.names if name not in self.optional]
        for index in range(max(depth, 1)):
            needed += [
                f'{old_prefix}{index}.{name}'
                for name in self.layer_names
                if name not in self.optional
            ]
        return converted, [name for name in needed if name not in there], unknown


def with_suffixes(names: Mapping[str, str], *suffixes: str) -> dict[str, str]:
    """Names of parameters from names of modules: ``a`` becomes ``a.weight``, ``a.bias``, …"""
    return {f'{old}.{s}': f'{new}.{s}' for old, new in names.items() for s in suffixes}
