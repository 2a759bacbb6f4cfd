"""What a load run is made of: the requests that a workload plans, and the trace that each leaves behind.

Knows neither sockets nor statistics. Times are nanoseconds of `time.monotonic_ns`, which all processes of one
machine share; spans that people give are seconds.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Transport = Literal["ws-responses", "ws-responses-lanes", "sse-responses", "sse-chat", "sse-completions"]


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """One request as its workload wants it.

    turns: what the person says, turn after turn; all but the last are sent first, each after the answer to the one
    before (one entry: an ordinary request). A turn is text, or token ids for transports that carry them.
    at: seconds after the start of the run (open loop, never delayed by earlier answers), or None: sent as soon as
    the stream that it belongs to has finished its request before (closed loop).
    stream: closed loop: requests of one stream follow each other in the order of `number`.
    part: requests of one name are reported together ("decode" and "long" of an interference run).
    cut_after: the client leaves after this many tokens (abort storm); how: `cut`.
    read_pause: seconds that a slow reader does not read after each token.
    until: closed loop: send again and again until this many seconds after the start (0: once).
    """

    number: int
    turns: tuple[str | tuple[int, ...], ...]
    output_tokens: int
    at: float | None = None
    stream: int = 0
    part: str = "main"
    cut_after: int | None = None
    cut: Literal["cancel", "close", "reset"] = "close"
    read_pause: float = 0.0
    until: float = 0.0


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """Bytes that carried text: when `recv` returned with them, and how many tokens they told of."""

    at_ns: int
    tokens: int


class Trace(msgspec.Struct, kw_only=True):
    """What happened to one turn of one planned request. `scheduled_ns` is when it should have been sent: an open
    loop measures from there, so that a server that freezes cannot hide the requests it kept waiting.

    chunks: in order of arrival, none without tokens. usage_*: as the server said, None when it did not say.
    error: why it failed, None if it did not. left: the client ended it on purpose. split: seconds by name (queue,
    prefill, step, send) where the server tells them.
    """

    number: int
    part: str
    turn: int
    scheduled_ns: int
    sent_ns: int
    chunks: list[Chunk]
    ended_ns: int
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    wanted_tokens: int = 0
    finish: str | None = None
    error: str | None = None
    left: bool = False
    split: dict[str, float] | None = None


class WorkerCost(msgspec.Struct, frozen=True, kw_only=True):
    """What one client process spent: CPU seconds over wall seconds of the measured run, and events read."""

    cpu_s: float
    wall_s: float
    events: int


class Run(msgspec.Struct, kw_only=True):
    """One repeat of one scenario against one server: everything that metrics are computed from."""

    transport: Transport
    started_ns: int
    ended_ns: int
    traces: list[Trace]
    workers: list[WorkerCost]
    warmup: bool = False
