"""A model folder as untrusted input: one error type and bounded JSON reading. Knows no tensor and no model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

JSON_LIMIT = 32 << 20


class CheckpointError(Exception):
    """The model folder cannot be served. The message is one sentence for the person who started the server."""


def read_json(path: Path, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """The JSON object in `path`. Anything else (too large, not an object, a key given twice, NaN) is refused."""
    try:
        size = path.stat().st_size
        if size > limit:
            raise CheckpointError(f"{path.name} has {size} bytes; at most {limit} are read")
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror or error}") from error
    return parse_object(data, path.name)


def parse_object(data: bytes, name: str) -> dict[str, Any]:
    """`data` as a JSON object with unique keys; `name` is how errors call it."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise CheckpointError(f"{name} gives the key {twice[:100]!r} twice")
        return found

    def no_constant(word: str) -> NoReturn:
        raise CheckpointError(f"{name} holds {word}, which is not JSON")

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        # ValueError covers bad UTF-8, bad JSON and integers too long to convert.
        raise CheckpointError(f"{name} is not valid JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{name} is not a JSON object")
    return value
