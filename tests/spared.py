"""Events with a field taken out, to see that a validator misses it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def without(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The event with each of its keys removed, one at a time, at every depth."""
    if isinstance(value, dict):
        for key in value:
            less = {k: v for k, v in value.items() if k != key}
            yield (*path, key), less
            for where, inner in without(value[key], (*path, key)):
                yield where, {**value, key: inner}
    elif isinstance(value, list):
        for index, item in enumerate(value):
            for where, inner in without(item, (*path, index)):
                yield where, [*value[:index], inner, *value[index + 1 :]]
