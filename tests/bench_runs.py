"""Runs made by hand for the tests of metrics, table and report: times in ms after a start, no clock involved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace.bench.record import Chunk, Run, Trace, WorkerCost

START = 1_000_000_000_000


def ns(ms: float) -> int:
    return START + round(ms * 1e6)


def trace(number: int, sent: float, chunks: Sequence[float | tuple[float, int]], **fields: Any) -> Trace:
    """A request sent at `sent` whose chunks came at these times; a pair is (time, tokens). Usage agrees."""
    pairs = [chunk if isinstance(chunk, tuple) else (chunk, 1) for chunk in chunks]
    count = sum(tokens for _, tokens in pairs)
    plain: dict[str, Any] = {
        "part": "main",
        "turn": 0,
        "scheduled_ns": ns(fields.pop("due", sent)),
        "ended_ns": ns(fields.pop("ended", pairs[-1][0] if pairs else sent)),
        "prompt_tokens": 10,
        "output_tokens": count,
        "wanted_tokens": count,
        "finish": "length",
    }
    return Trace(
        number=number,
        sent_ns=ns(sent),
        chunks=[Chunk(ns(at), tokens) for at, tokens in pairs],
        **(plain | fields),
    )


def run(traces: Sequence[Trace], *, warmup: bool = False, cpu_s: float = 0.1) -> Run:
    return Run(
        transport="sse-chat",
        started_ns=START,
        ended_ns=max(trace.ended_ns for trace in traces),
        traces=list(traces),
        workers=[WorkerCost(cpu_s=cpu_s, wall_s=1.0, events=100)],
        warmup=warmup,
    )
