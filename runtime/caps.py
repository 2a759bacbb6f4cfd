"""How large a value may become while a chat template runs, asked before the operation that would make it.

Knows Python's values and the names of Jinja's operators, methods and filters, not time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

TEXT_LIMIT = 8 << 20  # characters of any string a template makes
ITEM_LIMIT = 100_000  # entries of any list, and nodes of any nested value
_BITS_LIMIT = 4096
# Filters that turn their value into a string first.
_PRINTS = {"string", "trim", "lower", "upper", "title", "capitalize", "e", "escape", "replace", "format"}


class RenderLimit(Exception):
    """The template asked for more than a template may have."""


def bounded(size: int, limit: int = TEXT_LIMIT) -> None:
    if size > limit:
        raise RenderLimit(f"the chat template makes a value of size {size}; at most {limit} is allowed")


def weigh(value: Any) -> None:
    """Refuse a nested value of more than ITEM_LIMIT nodes; shared parts count each time, as in print."""
    count = 0
    rest = [value]
    while rest:
        each = rest.pop()
        count += 1
        if isinstance(each, Mapping):
            count += len(each)
            rest.extend(each.values())
        elif isinstance(each, list | tuple | set | frozenset):
            rest.extend(each)
        bounded(count + len(rest), ITEM_LIMIT)


def checked(value: Any) -> Any:
    """A value that an operation made, if it is within the caps."""
    if isinstance(value, str | bytes):
        bounded(len(value))
    elif isinstance(value, int):
        bounded(value.bit_length(), _BITS_LIMIT)
    elif isinstance(value, list | tuple | set | dict):
        weigh(value)
    return value


def check_format(text: str, values: Iterable[Any], opener: str) -> None:
    """Before `text % values` or `text.format(values)`: no large width, no value repeated beyond the cap."""
    longest = 0
    for value in values:
        weigh(value)
        if isinstance(value, int):
            bounded(value.bit_length(), 32)
            if value > 1000 and ("*" in text or text.count("{") > 1):
                raise RenderLimit("the chat template formats with a computed width")
        longest = max(longest, len(value) if isinstance(value, str) else 64 * ITEM_LIMIT * _is_nested(value))
    if re.search(r"\d{4}", text):
        raise RenderLimit("the chat template formats with a width above 999")
    bounded(len(text) + text.count(opener) * (longest + 1000))


def _is_nested(value: Any) -> int:
    return int(isinstance(value, Mapping | list | tuple | set | frozenset))


def _check_replace(text: str, old: str, new: str) -> None:
    count = text.count(old) if old else len(text) + 1
    bounded(len(text) + count * max(0, len(new) - len(old)))


def _check_join(separator: str, parts: list[Any]) -> None:
    bounded(sum(len(str(part)) for part in parts) + len(separator) * len(parts))


def check_operator(operator: str, left: Any, right: Any) -> None:
    """Refuse what would become too large. Runs before the operator does."""
    if operator == "+":
        if hasattr(left, "__len__") and hasattr(right, "__len__"):
            bounded(len(left) + len(right), TEXT_LIMIT if isinstance(left, str) else ITEM_LIMIT)
    elif operator == "*":
        for one, other in ((left, right), (right, left)):
            if hasattr(one, "__len__") and isinstance(other, int):
                bounded(len(one) * other, TEXT_LIMIT if isinstance(one, str) else ITEM_LIMIT)
        if isinstance(left, int) and isinstance(right, int):
            bounded(left.bit_length() + right.bit_length(), _BITS_LIMIT)
    elif operator == "**":
        if isinstance(left, int) and isinstance(right, int):
            bounded(left.bit_length() * max(right, 0), _BITS_LIMIT)
    elif operator == "%" and isinstance(left, str):
        values = right if isinstance(right, tuple) else (right,)
        if isinstance(right, Mapping):
            values = tuple(right.values())
        check_format(left, values, "%")


def check_method(text: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Measure a method call on a string; returns the arguments to use."""
    if name in ("center", "ljust", "rjust", "zfill", "expandtabs"):
        for width in (*args, *kwargs.values()):
            if isinstance(width, int):
                bounded(width if name != "expandtabs" else width * (text.count("\t") + 1))
    elif name == "replace" and len(args) >= 2 and isinstance(args[0], str) and isinstance(args[1], str):
        _check_replace(text, args[0], args[1])
    elif name == "join" and args:
        parts = list(args[0])
        _check_join(text, parts)
        args = (parts, *args[1:])
    elif name in ("translate", "maketrans", "encode"):
        raise RenderLimit(f"chat templates may not call {name}()")
    return args


def check_filter(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Measure a filter call (args[0] is the filtered value); returns the arguments to use."""
    value = args[0] if args else kwargs.get("value", kwargs.get("s", ""))
    rest = (*args[1:], *kwargs.values())
    if name in _PRINTS:
        weigh(value)
    if name == "replace" and len(rest) >= 2:
        _check_replace(str(value), str(rest[0]), str(rest[1]))
    elif name == "format":
        check_format(str(value), rest, "%")
    elif name == "center":
        bounded(max([each for each in rest if isinstance(each, int)], default=0))
    elif name == "indent":
        width = max([each if isinstance(each, int) else len(str(each)) for each in rest], default=4)
        bounded(len(str(value)) + (str(value).count("\n") + 1) * width)
    elif name == "round":
        bounded(max([abs(each) for each in rest if isinstance(each, int)], default=0), 300)
    elif name == "join":
        parts = list(value)
        weigh(parts)
        if len(rest) <= 1:
            _check_join(str(rest[0]) if rest else "", parts)
        else:  # with attribute=: the parts are inside the values
            bounded(len(str(rest[0])) * len(parts))
        if args:
            args = (parts, *args[1:])
    return args
