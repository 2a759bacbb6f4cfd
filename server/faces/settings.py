"""What every face is given at start. Knows limits and clocks; knows no protocol."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from headrace.server.session import LaneLimits


class Timer(Protocol):
    def cancel(self) -> None: ...


def _call_later(delay: float, callback: Callable[[], None]) -> Timer:
    return asyncio.get_running_loop().call_later(delay, callback)


def _count_nothing(endpoint: str, fields: int) -> None:
    """Where no metric is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceSettings:
    """Limits, clocks and names that the faces share. `now` gives Unix seconds for the times in objects,
    `clock` monotonic seconds for everything that is measured."""

    model_aliases: frozenset[str] = frozenset({"default"})
    strict_fields: bool = False
    reasoning_field: str = "reasoning_content"  # where chat completions put what the model thought
    connection_limit: float = 3600.0  # seconds after which a socket takes no new request
    lanes: LaneLimits = field(default_factory=LaneLimits)
    waiting_bytes: int = 256 << 20  # of requests that wait, on all sockets together
    linger: float = 60.0  # seconds that a held response outlives its connection
    held_bytes: int = 256 << 20  # of responses kept for readers who may come back
    held_streams: int = 1024  # of them without a reader
    held_tokens: int = 4096  # that wait for such a reader, of each
    pins_per_key: int = 10
    drafts: int = 4  # prompts that may be typed at once on one socket
    draft_idle: float = 120.0  # seconds without a key after which a draft is dropped
    drain: float = 30.0  # seconds that running answers have when the server stops
    version: str = "0"
    now: Callable[[], float] = time.time
    clock: Callable[[], float] = time.monotonic
    call_later: Callable[[float, Callable[[], None]], Timer] = _call_later
    on_ignored_fields: Callable[[str, int], None] = _count_nothing


def rfc3339(seconds: float) -> str:
    """Unix seconds as other protocols write times."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
