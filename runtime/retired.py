"""What comes out of the scheduler beside plans: what a landed row means, and how much was done so far."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.runtime.logprobs import TokenLogprob
from headrace.runtime.request import FinishReason, Req


@dataclass(slots=True)
class Counters:
    """Facts since the start; they only grow."""

    steps: int = 0
    prefill_tokens_computed: int = 0  # input tokens run through the model (cache hits and forks are not)
    decode_tokens_computed: int = 0  # sampled positions
    cached_tokens: int = 0  # input tokens that a prefix hit or a fork saved
    admissions: int = 0
    regrants: int = 0  # slots written again for the request that has them, because its parameters changed
    retractions: int = 0
    yields: int = 0  # slots given up to a more urgent request, with the pages kept
    evicted_pages: int = 0
    copied_pages: int = 0


@dataclass(slots=True)  # not frozen: one is made for every token, and freezing costs five times as much
class Retired:
    """What one landed row means: `token` was generated (None: the row failed), `finish` if that ended it, and how
    likely the model found it, where the request wants to know."""

    req: Req
    token: int | None
    finish: FinishReason | None
    logprob: TokenLogprob | None = None
