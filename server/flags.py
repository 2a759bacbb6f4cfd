"""The command line, made from the fields of the settings structs. Knows argparse; knows no single setting."""

from __future__ import annotations

import argparse
import math
import re
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from headrace.server.config import ServerConfig, field_notes, show

_SIZE = re.compile(r"\A([0-9]+)\s*([KMG]?)(?:i?B)?\Z", re.IGNORECASE)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def parse(argv: Sequence[str], prog: str = "headrace serve") -> ServerConfig:
    """The configuration that `argv` asks for. A wrong value prints a sentence and exits with code 2."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Serve a model over WebSocket and HTTP on one port."
    )
    add_flags(parser)
    return from_arguments(parser, parser.parse_args(argv))


def add_flags(parser: argparse.ArgumentParser, struct: type[msgspec.Struct] = ServerConfig) -> None:
    """Give `parser` one flag per field of `struct`; a struct inside it becomes a group of its own."""
    hints = typing.get_type_hints(struct)
    described = field_notes(struct)
    group: Any = parser.add_argument_group(_title(struct))
    for field in msgspec.structs.fields(struct):
        kind = hints[field.name]
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            add_flags(parser, kind)
            continue
        text, extra = described[field.name]
        default = show(field.default, str(extra.get("unit", "")))
        # argparse reads % in help as a format.
        text = f"{text} [{default}]".replace("%", "%%")
        if extra.get("positional"):
            group.add_argument(field.name, nargs="?", metavar=field.name.upper(), help=text)
            continue
        flag = _flag(field.name)
        settings: dict[str, Any] = {"dest": field.name, "help": text}
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **settings)
        elif typing.get_origin(kind) is tuple:
            group.add_argument(flag, action="append", metavar=_letter(extra, str), **settings)
        elif typing.get_origin(kind) is Literal:
            group.add_argument(flag, choices=typing.get_args(kind), **settings)
        else:
            read = _size if extra.get("unit") == "bytes" else str
            group.add_argument(flag, type=read, metavar=_letter(extra, kind), **settings)


def from_arguments(parser: argparse.ArgumentParser, given: argparse.Namespace) -> ServerConfig:
    """The checked configuration; what was not given keeps its default."""
    config = _build(parser, given, ServerConfig)
    assert isinstance(config, ServerConfig)
    return config


def _build(
    parser: argparse.ArgumentParser, given: argparse.Namespace, struct: type[msgspec.Struct]
) -> msgspec.Struct:
    hints = typing.get_type_hints(struct, include_extras=True)
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(struct):
        kind = hints[field.name]
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            values[field.name] = _build(parser, given, kind)
            continue
        value = getattr(given, field.name, None)
        if value is None:
            continue
        try:
            values[field.name] = msgspec.convert(value, kind, strict=False)
        except msgspec.ValidationError as error:
            parser.error(f"argument {_flag(field.name)}: {error} (given: {str(value)[:100]})")
        if isinstance(values[field.name], float) and not math.isfinite(values[field.name]):
            parser.error(f"argument {_flag(field.name)}: not a finite number: {str(value)[:100]}")
    return struct(**values)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _size(text: str) -> int:
    match = _SIZE.match(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"not a number of bytes like 65536, 64K or 32M: {text[:100]!r}")
    return int(match[1]) * _UNITS[match[2].upper()]


def _letter(extra: dict[str, Any], kind: Any) -> str:
    if extra.get("unit") == "bytes":
        return "BYTES"
    if extra.get("unit") == "s":
        return "SECONDS"
    if isinstance(kind, types.GenericAlias) or kind is str:
        return "TEXT"
    return "N"


def _title(struct: type[msgspec.Struct]) -> str:
    return {"ServerConfig": "server", "EngineConfig": "engine"}.get(struct.__name__, struct.__name__.lower())
