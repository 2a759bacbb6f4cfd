"""What every face is given at start. Knows limits and clocks; knows no protocol."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
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
    connection_limit: float = 3600.0  # seconds after which a socket takes no new request
    lanes: LaneLimits = field(default_factory=LaneLimits)
    waiting_bytes: int = 256 << 20  # of requests that wait, on all sockets together
    linger: float = 60.0  # seconds that a held response outlives its connection
    drain: float = 30.0  # seconds that running answers have when the server stops
    version: str = "0"
    now: Callable[[], float] = time.time
    clock: Callable[[], float] = time.monotonic
    call_later: Callable[[float, Callable[[], None]], Timer] = _call_later
    on_ignored_fields: Callable[[str, int], None] = _count_nothing


def new_id(prefix: str) -> str:
    """An id that nobody can guess: 128 random bits behind `prefix`."""
    return f"{prefix}_{secrets.token_hex(16)}"
