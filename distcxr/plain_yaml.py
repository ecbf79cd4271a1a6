"""YAML to plain values, with one kind of error, and no more values than a text of a recipe's size has."""

from __future__ import annotations

from typing import Any

import yaml

_MOST_VALUES = 100_000  # a recipe has 200; nine lines of aliases can stand for a billion


def load_plain(text: str, loader_class: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """The one document in `text`.

    Raises:
        yaml.YAMLError: it is not YAML, is nested too deeply, holds itself, or its aliases stand for too many values.
    """
    try:
        loader = loader_class(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if (num := _count(node, {})) > _MOST_VALUES:
                raise yaml.YAMLError(f"its aliases stand for {num:,} values")
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError:
        raise
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:  # of tags, such as `!!bool maybe`
        raise yaml.YAMLError(f"a value can't be read: {error}") from None


def _count(node: yaml.Node, counted: dict[int, int]) -> int:
    """Values that a node stands for, each alias counted anew; `counted` has nodes by identity, 0 where it has begun."""
    if id(node) not in counted:
        counted[id(node)] = 0
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        inner = [part for pair in parts for part in pair] if isinstance(node, yaml.MappingNode) else parts
        counted[id(node)] = 1 + sum(_count(part, counted) for part in inner)
    elif not counted[id(node)]:
        raise yaml.YAMLError("an anchor holds itself")
    return counted[id(node)]
