"""Reads YAML within limits.

A file of a kilobyte can expand to gigabytes: an alias may name a list of ten aliases, each of which names a list of ten
aliases. Values are therefore counted before any of them is constructed, those behind an alias once for every use of it.
"""

from __future__ import annotations

import os
from typing import Any

import yaml

from ...runtime.files.reading import MOST_DEPTH, read_text

#: Most bytes of a YAML file. A train.yaml has a few kilobytes.
MOST_YAML = 256 << 10
#: Most values of a YAML file, with aliases expanded.
MOST_YAML_VALUES = 10_000
#: Most characters of a number or a date.
MOST_NUMBER = 64


#: libyaml's if PyYAML was built with it: the pure Python one reads a few thousand values per second.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """The contents of a YAML file. Raises ValueError or ``yaml.YAMLError`` for bad contents, OSError if it cannot be
    read."""
    text = read_text(path, MOST_YAML)
    _check_as_written(text)
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _Weight().of(node)
        return loader.construct_document(node)
    except (LookupError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        # the constructors of numbers and dates raise these where a tag asks for one, as in "!!int x"
        raise ValueError(f"a value does not fit its tag ({type(error).__name__})") from error
    finally:
        loader.dispose()


def _check_as_written(text: str) -> None:
    """Count values and levels event by event, before anything recursive looks at them."""
    count = depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        count += isinstance(event, yaml.NodeEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        _limit(count, depth)


class _Weight:
    """Counts the values that a node expands to, and its levels, through its aliases."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[int, int]] = {}
        self.under_way: set[int] = set()

    def of(self, node: Any) -> tuple[int, int]:
        if id(node) in self.known:
            return self.known[id(node)]
        if id(node) in self.under_way:
            raise ValueError(f"line {node.start_mark.line + 1}: an alias occurs within what it names")
        if isinstance(node, yaml.ScalarNode):
            if len(node.value) > MOST_NUMBER and not node.tag.endswith((":str", ":binary")):
                raise ValueError(
                    f"line {node.start_mark.line + 1}: a number or date of {len(node.value)} characters; at most "
                    f"{MOST_NUMBER} are read"
                )
            return 1, 0
        self.under_way.add(id(node))
        children = node.value if isinstance(node, yaml.SequenceNode) else [each for pair in node.value for each in pair]
        count, depth = 1, 0
        for child in children:
            more, deeper = self.of(child)
            count, depth = count + more, max(depth, deeper)
            _limit(count, depth + 1)
        self.under_way.remove(id(node))
        self.known[id(node)] = count, depth + 1
        return count, depth + 1


def _limit(count: int, depth: int) -> None:
    if count > MOST_YAML_VALUES:
        raise ValueError(f"it expands to more than {MOST_YAML_VALUES} values; use no aliases, or fewer values")
    if depth > MOST_DEPTH:
        raise ValueError(f"its values are nested deeper than {MOST_DEPTH} levels")
