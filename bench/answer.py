"""One trace, measured: when its tokens came, in milliseconds, or why it counts as failed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.bench.record import Trace

MS = 1e6  # nanoseconds


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that counts. Times in ms.

    began_ns: where latencies are measured from, the moment at which the request should have been sent. In an open
    loop that is its arrival, however late a stalled connection let it leave; in a closed loop a request is due when
    it is sent, and its trace says the same for both.
    gaps: between consecutive chunks; tokens: of each chunk, so that sum(tokens - 1) gaps between tokens are zero.
    """

    trace: Trace
    ttft: float
    e2el: float
    tpot: float | None
    gaps: NDArray[np.float64]
    at_ns: NDArray[np.int64]
    tokens: NDArray[np.int64]

    @property
    def count(self) -> int:
        """Tokens that arrived."""
        return int(self.tokens.sum())

    @property
    def longest_gap(self) -> float | None:
        return float(self.gaps.max()) if len(self.gaps) else None


def measure(trace: Trace) -> Answer:
    """The answer that a trace with chunks and without failure is."""
    at_ns = np.array([chunk.at_ns for chunk in trace.chunks], dtype=np.int64)
    tokens = np.array([chunk.tokens for chunk in trace.chunks], dtype=np.int64)
    assert len(at_ns) and tokens.min() >= 1, "a chunk without tokens is no chunk"
    assert trace.scheduled_ns <= trace.sent_ns <= at_ns[0], (
        f"request {trace.number} was answered before it was sent"
    )
    gaps = np.diff(at_ns) / MS
    assert not len(gaps) or gaps.min() >= 0, (
        f"chunks of request {trace.number} are not in the order of arrival"
    )
    count = int(tokens.sum())
    return Answer(
        trace=trace,
        ttft=float(at_ns[0] - trace.scheduled_ns) / MS,
        e2el=float(at_ns[-1] - trace.scheduled_ns) / MS,
        tpot=float(at_ns[-1] - at_ns[0]) / MS / (count - 1) if count > 1 else None,
        gaps=gaps,
        at_ns=at_ns,
        tokens=tokens,
    )


def failure(trace: Trace) -> str | None:
    """Why a trace counts as failed, None if it does not.

    A count that differs from the server's own `usage` is a failure: the tokens of that answer cannot be placed in
    time, so it must not touch any average. Of a request that the client ended, the server never said a count.
    """
    if trace.error is not None:
        return trace.error
    if trace.left:
        return None
    if wrong := miscount(trace):
        return wrong
    if not trace.chunks:
        return "ended without a token"
    return None


def miscount(trace: Trace) -> str | None:
    """How the tokens counted contradict what the server said or what was asked; None if they agree."""
    if trace.left or trace.error is not None:
        return None
    counted, said = sum(chunk.tokens for chunk in trace.chunks), trace.output_tokens
    if said is not None and counted != said:
        return f"counted {counted} tokens where usage says {said}"
    if trace.wanted_tokens and counted > trace.wanted_tokens:
        return f"counted {counted} tokens where {trace.wanted_tokens} were asked for"
    return None
