"""What an answer must look like, as an ask carries it. Knows schemas; how they are enforced is grammar.py's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class AnswerShape:
    """The answer's text is one JSON value by `schema`, plain values only (None: any object), or, where `regex` is
    given, a text that matches it as a whole."""

    schema: Mapping[str, Any] | None = None
    regex: str | None = None
