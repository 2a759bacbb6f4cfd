"""One generation in the core. Knows token ids and lengths; must not know tensors, event loops or text."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from headrace.runtime.claim import NO_CLAIM, Claim, Promise, Rank
from headrace.runtime.image import ImageSpan
from headrace.runtime.logprobs import LogprobWish

if TYPE_CHECKING:
    from headrace.runtime.gallery import Exhibit
    from headrace.runtime.prefix import PrefixLease


class Phase(enum.Enum):
    """Where a Req stands. A slot is held exactly in PREFILL and DECODE."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    PAUSED = "paused"
    DONE = "done"


class FinishReason(enum.Enum):
    """Why a generation ended; written once, the first writer wins."""

    STOP = "stop"  # a stop id or a stop string
    LENGTH = "length"  # max_tokens or the context was reached
    CANCELLED = "cancelled"  # the client asked, or its connection went
    ERROR = "error"  # this request failed alone (non-finite logits, wall clock); see its stream for the words


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. Every field has a neutral value that means "off".

    temperature: 0 is greedy; below 1e-5 is treated as 0. top_k: 0 = all. top_p in (0, 1]; min_p in [0, 1].
    repetition_penalty > 0 (1 = off) counts prompt and output; presence/frequency in [-2, 2] count output only.
    seed: 64-bit, always set: equal (seed, position, logits) give the equal token whatever else runs.
    logit_bias: (token id, bias) pairs. stop_ids end the generation; they are suppressed before min_tokens.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    stop_ids: frozenset[int] = frozenset()
    min_tokens: int = 0

    def __post_init__(self) -> None:
        assert 0.0 <= self.temperature <= 100.0, self.temperature
        assert self.top_k >= 0, self.top_k
        assert 0.0 < self.top_p <= 1.0, self.top_p
        assert 0.0 <= self.min_p <= 1.0, self.min_p
        assert 0.0 < self.repetition_penalty <= 100.0, self.repetition_penalty
        assert 0 <= self.seed < 1 << 64, self.seed
        assert self.min_tokens >= 0, self.min_tokens

    @property
    def greedy(self) -> bool:
        return self.temperature < 1e-5

    @property
    def needs_history(self) -> bool:
        """True if sampling reads which tokens came before (any penalty is on)."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


class TokenGrammar(Protocol):
    """Which tokens may come next. `mask` is asked while the one step is in flight, `accept` after it has landed."""

    def mask(self) -> bytes:
        """One bit per token id, low bit first; ids beyond its end may not come."""

    def accept(self, token: int) -> None:
        """`token` was generated."""

    def follow(self, tokens: Sequence[int]) -> bool:
        """As if `tokens` had been generated; False, and it stands nowhere, if one of them may not come."""

    def copy(self) -> TokenGrammar:
        """Another one that stands where this one does."""

    @property
    def trouble(self) -> str:
        """Why no token may come any more, though the answer is not whole; else nothing."""


@dataclass(frozen=True, slots=True)
class ForkPoint:
    """The new Req shares the KV of `parent` for its first `at` tokens: what has landed of them, and what is left of
    them, if it has ended."""

    parent: Req
    at: int


@dataclass(frozen=True, slots=True)
class Change:
    """What a live Req is to become: its next sampling parameters, and its next `max_len`."""

    params: SamplingParams
    max_len: int


@dataclass(slots=True, eq=False)
class Req:
    """One generation.

    `tokens` is what the host knows: prompt, then retired outputs. Three lengths rule the rest: `computed_len`:
    tokens whose KV has been launched; `landed_len`: tokens whose KV has retired; `total_len`: known tokens plus
    those sampled on the device that the host has not seen (at most `inflight`). `max_len` bounds `total_len`:
    prompt plus the tokens it may generate. `spans`: where its prompt shows pictures, in order; what the
    placeholder tokens there mean is said by the picture's key alone (`keys`).
    """

    id: int
    salt: str
    tokens: list[int]
    prompt_len: int
    max_len: int
    params: SamplingParams
    fork: ForkPoint | None = None
    logprobs: LogprobWish | None = None
    grammar: TokenGrammar | None = None  # what its tokens must follow: then a row waits for the one before
    spans: tuple[ImageSpan, ...] = ()
    claim: Claim = NO_CLAIM

    phase: Phase = field(default=Phase.WAITING, init=False)
    finish: FinishReason | None = field(default=None, init=False)
    computed_len: int = field(default=0, init=False)
    landed_len: int = field(default=0, init=False)
    total_len: int = field(default=0, init=False)
    inflight: int = field(default=0, init=False)
    slot: int | None = field(default=None, init=False)
    pages: list[int] = field(default_factory=list, init=False)
    lease: PrefixLease | None = field(default=None, init=False)
    cached_len: int = field(default=0, init=False)  # prompt tokens that a prefix hit or a fork saved at first
    forked_len: int = field(default=0, init=False)  # prompt tokens that were a parent's, 0 without a fork
    copy_from: int | None = field(default=None, init=False)  # part page of a fork, copied when admitted
    copy_len: int = field(default=0, init=False)  # tokens of KV this Req has once that page is copied
    pausing: bool = field(default=False, init=False)  # mark: leave the batch when nothing is in flight
    retracting: bool = field(default=False, init=False)  # mark: give pages back when nothing is in flight
    yielding: bool = field(default=False, init=False)  # mark: give the slot up, and wait with the pages
    retractions: int = field(default=0, init=False)
    rank: Rank = field(init=False)  # that of its class, or higher once it has waited too long
    promise: Promise | None = field(default=None, init=False)  # what was promised when it was taken in
    charged_len: int = field(default=0, init=False)  # `computed_len` when its owner was last charged
    admitted: bool = field(default=False, init=False)  # it has had a slot: `cached_len` is settled
    changing: Change | None = field(default=None, init=False)  # mark: take effect when nothing is in flight
    changed_at: int = field(default=0, init=False)  # known tokens when the last change took effect
    forkable: bool = field(default=False, init=False)  # when it ends, its part page is cached for forks
    spoilt: bool = field(default=False, init=False)  # a row of it was not finite: its KV is for nobody else
    exhibits: dict[int, Exhibit] = field(
        default_factory=dict, init=False
    )  # encoded pictures it reads, by span

    def __post_init__(self) -> None:
        assert self.prompt_len == len(self.tokens) >= 1, "a Req is born with its whole prompt"
        assert self.prompt_len < self.max_len, "a Req has room for at least one token"
        self.total_len = self.prompt_len
        self.rank = self.claim.targets.rank
        end = 0
        for span in self.spans:
            assert end <= span.start and span.end <= self.prompt_len, "spans lie in order, inside the prompt"
            end = span.end

    def keys(self, start: int, end: int) -> Sequence[int]:
        """What tells the content of tokens [start, end) apart from all others: ids, and keys where pictures are."""
        found = self.tokens[start:end]
        for span in self.spans:
            first, last = max(start, span.start), min(end, span.end)
            if first < last:
                found[first - start : last - start] = [span.image.key] * (last - first)
        return found

    @property
    def output_len(self) -> int:
        """Tokens generated and seen by the host."""
        return len(self.tokens) - self.prompt_len

    @property
    def reusable_len(self) -> int:
        """Of its known tokens, how many leading ones need no row if their KV is at hand. The last one is always
        fed, so that there are logits to sample from."""
        known = len(self.tokens) - 1
        return known if self.logprobs is None else self.logprobs.reusable(known)

    def check(self) -> None:
        """Raise AssertionError if a length or phase rule of this Req alone is broken."""
        assert 0 <= self.landed_len <= self.computed_len <= self.total_len <= self.max_len, self
        assert len(self.tokens) <= self.total_len, self
        assert self.total_len - len(self.tokens) <= self.inflight, self
        assert (self.slot is not None) == (self.phase in (Phase.PREFILL, Phase.DECODE)), self
        assert self.inflight == 0 or self.slot is not None, self
        assert not self.exhibits or self.slot is not None, self
        if self.phase is Phase.DONE:
            assert self.finish is not None and not self.pages and self.lease is None, self
            assert self.copy_from is None, self
        if self.phase is Phase.DECODE and self.finish is None:
            assert self.total_len == self.computed_len + 1, self
