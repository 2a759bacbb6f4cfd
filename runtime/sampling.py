"""The choice of the next token: per-slot settings, and the arithmetic from a row of logits to one id.

Knows logits, slots and positions; must not know requests, batches or text. Rows are computed one by one with no
shared state, so a token depends on (settings, history, seed, position, its row of logits) and never on the batch.

Order of operations, as in vLLM and transformers:

1. penalties: repetition over prompt and output (a logit above 0 is divided, others are multiplied), then frequency
   (times the count) and presence, both over the output alone;
2. logit_bias is added;
3. stop ids become -inf while the output index (position - prompt_len) is below min_tokens, and so does every token
   that a grammar does not allow;
4. greedy rows take the highest logit. Others: d = (logit - highest) / temperature, in float32;
5. min_p keeps d >= ln(min_p); top_k keeps every d that is not below the k-th largest (ties stay); top_p ranks
   what is left by (d descending, id ascending) and keeps a token while the mass ranked before it is below top_p;
6. the token with the largest d + G(token) wins; everywhere, ties go to the lowest id.

Randomness is stateless. For a token id, `w` is the 32-bit word `id % 4` of Philox4x32-10 with the seed as its
64-bit key (low half first) and the counter (id // 4, position, 0, 0). Then, in float64,

    v = (w + 0.5) * 2**-32          exact, strictly between 0 and 1
    G = -log(-log1p(-v))            a Gumbel variate between -3.14 and 22.88, fine-grained where it can win

`position` is the index of the token being chosen, counted from the start of the prompt. The map from integers to
v is exact, so another device agrees in every bit of w and v, and differs in a token only where two sums d + G lie
within its rounding. A kernel in float32 must clamp v to 1 - 2**-24.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.runtime.philox import Words, WordScratch, row_words, token_words
from headrace.runtime.plan import NON_FINITE, SlotGrant
from headrace.runtime.request import SamplingParams

Row = NDArray[np.float32]
Ids = NDArray[np.int64]

# G lies in [-ln(33 ln 2), 33 ln 2] = [-3.131, 22.874]. The highest logit has d = 0 and so a sum of at least -3.131:
# a token with d below -26.005 can neither win nor tie.
_HOPELESS = np.float32(-26.1)
_TWO_32 = 4294967296.0
_BLOCK = 256
_LARGEST = np.finfo(np.float32).max


class History:
    """Which tokens one slot has seen, as distinct ids with their counts: what the penalties read.

    An id outside the logits (a prompt id of a wider embedding) is left out: it has no logit to penalise.
    """

    __slots__ = ("_index", "_width", "counts", "ids", "length")

    def __init__(self, prompt: tuple[int, ...], output: tuple[int, ...], width: int) -> None:
        self._width = width
        self._index: dict[int, int] = {}
        self.length = 0
        self.ids: Ids = np.zeros(max(64, 2 * len(prompt)), dtype=np.int64)
        self.counts: NDArray[np.float32] = np.zeros(len(self.ids), dtype=np.float32)  # in the output alone
        for token in prompt:
            self._place(token)
        for token in output:
            self.append(token)

    def append(self, token: int) -> None:
        """One more output token."""
        place = self._place(token)
        if place is not None:
            self.counts[place] += 1.0

    def _place(self, token: int) -> int | None:
        if not 0 <= token < self._width:
            return None
        place = self._index.get(token)
        if place is None:
            place = self._index[token] = self.length
            if place == len(self.ids):
                self.ids = np.concatenate((self.ids, np.zeros_like(self.ids)))
                self.counts = np.concatenate((self.counts, np.zeros_like(self.counts)))
            self.ids[place] = token
            self.length += 1
        return place

    def penalise(self, row: Row, params: SamplingParams) -> None:
        """Apply all three penalties to `row` in place."""
        ids = self.ids[: self.length]
        counts = self.counts[: self.length]
        seen = row[ids]
        factor = np.float32(params.repetition_penalty)
        if factor != 1.0:
            seen = np.where(seen > 0.0, seen / factor, seen * factor)
        seen -= np.float32(params.frequency_penalty) * counts
        seen -= np.float32(params.presence_penalty) * (counts > 0.0)
        row[ids] = np.minimum(seen, _LARGEST)  # a penalty must not push a finite logit to +inf


Weigh = Callable[[Row, int, int], tuple[Words, Row]]


class RowScratch:
    """Memory for the work on one row of `width` logits; nothing in it outlives the row.

    weigh(gaps, seed, position): a faster way to the random word of every token, and to that word over exp of its
    gap up to rounding."""

    def __init__(self, width: int, weigh: Weigh | None = None) -> None:
        self.weigh = weigh
        self.words = WordScratch(width)
        self.gaps: Row = np.empty(width, dtype=np.float32)
        self.quotients: Row = np.empty(width, dtype=np.float32)
        self.masses: Row = np.empty(width, dtype=np.float32)


class SlotSampling:
    """Everything that sampling knows about the present owner of one slot. Born complete from its grant."""

    __slots__ = ("adjusts", "bias_ids", "biases", "first_free", "history", "params", "stop_ids")

    def __init__(self, grant: SlotGrant, width: int) -> None:
        params = grant.params
        self.params = params
        self.bias_ids: Ids = np.array([token for token, _ in params.logit_bias], dtype=np.int64)
        self.biases: Row = np.array([bias for _, bias in params.logit_bias], dtype=np.float32)
        self.stop_ids: Ids = np.array(sorted(params.stop_ids), dtype=np.int64)
        for ids in (self.bias_ids, self.stop_ids):
            assert ids.size == 0 or (ids.min() >= 0 and ids.max() < width), (
                "ids are checked when a prompt is prepared"
            )
        # The first position at which a stop id may be chosen.
        self.first_free = grant.prompt_len + (params.min_tokens if len(self.stop_ids) else 0)
        self.history: History | None = None
        if params.needs_history:
            assert len(grant.history) >= grant.prompt_len, "penalties need every known token"
            prompt, output = grant.history[: grant.prompt_len], grant.history[grant.prompt_len :]
            self.history = History(prompt, output, width)
        self.adjusts = self.history is not None or len(self.bias_ids) > 0

    def choose(self, row: Row, position: int, scratch: RowScratch, mask: bytes | None = None) -> int:
        """The next token for this slot, or NON_FINITE; `row` is left as it was. mask: see SamplingTable.sample."""
        best = int(row.argmax())  # the first maximum; a NaN anywhere counts as the maximum
        if not math.isfinite(row[best]):
            return NON_FINITE
        held = position < self.first_free
        if self.adjusts or held or mask is not None:
            row = row.copy()
            with np.errstate(over="ignore", invalid="ignore"):
                if self.history is not None:
                    self.history.penalise(row, self.params)
                np.add.at(row, self.bias_ids, self.biases)
            if held:
                row[self.stop_ids] = -np.inf
            if mask is not None:
                row[forbidden(mask, len(row))] = -np.inf
            best = int(row.argmax())
            if not math.isfinite(row[best]):
                return NON_FINITE
        token = best if self.params.greedy else draw(row, row[best], self.params, position, scratch)
        if self.history is not None:
            self.history.append(token)
        return token


def draw(row: Row, highest: np.float32, params: SamplingParams, position: int, scratch: RowScratch) -> int:
    """A token drawn from softmax(row / temperature) after all filters. `highest` is the row's maximum, finite."""
    with np.errstate(over="ignore"):  # a gap that overflows is -inf: a token that cannot win
        gaps = np.subtract(row, highest, out=scratch.gaps)
        gaps /= np.float32(params.temperature)
    ids = candidates(gaps, params)
    if len(ids) == 1:
        return int(ids[0])
    every = len(ids) == len(row)
    if len(ids) * 4 > len(row) and scratch.weigh is not None:
        words, quotients = scratch.weigh(gaps, params.seed, position)
        if not every:
            words, quotients, gaps = words[ids], quotients[ids], gaps[ids]
    else:
        if len(ids) * 4 > len(row):
            words = row_words(params.seed, position, len(row), scratch.words)
            words = words if every else words[ids]
        else:
            words = token_words(params.seed, position, ids)
        gaps = gaps if every else gaps[ids]
        quotients = scratch.quotients[: len(words)]
        quotients[:] = words
        quotients /= np.exp(gaps, out=scratch.masses[: len(words)])
    # -log1p(-v) >= v, so a token can reach the sum `bar` only if v / exp(d) <= exp(-bar). The cheap quotient (w
    # in place of w + 0.5 only makes it smaller) finds a strong `bar`; the exact sum is for the few that reach it.
    strong = int(quotients.argmin())
    bar = float(_sums(gaps[strong : strong + 1], words[strong : strong + 1])[0])
    able = np.flatnonzero(quotients <= np.float32(math.exp(-bar) * _TWO_32 * (1.0 + 1e-4)))
    return int(ids[able[_sums(gaps[able], words[able]).argmax()]])


def candidates(gaps: Row, params: SamplingParams) -> Ids:
    """The ids that may be drawn, ascending. `gaps`: logits over temperature, the highest at 0."""
    cut = np.float32(-np.inf)
    if params.min_p > 0.0:
        cut = np.float32(math.log(params.min_p))
    if 0 < params.top_k < len(gaps):
        kth = len(gaps) - params.top_k
        cut = max(cut, np.partition(gaps, kth)[kth])
    spare = 0
    if params.top_p < 1.0:
        cut, spare = _nucleus(gaps, cut, params.top_p)
    if cut < _HOPELESS:
        cut, spare = _HOPELESS, 0
    ids = np.flatnonzero(gaps >= cut)
    if spare:
        # Only ties of the last rank are cut, the highest ids first.
        ties = np.flatnonzero(gaps[ids] == cut)
        ids = np.delete(ids, ties[len(ties) - spare :])
    return ids


def _nucleus(gaps: Row, cut: np.float32, top_p: float) -> tuple[np.float32, int]:
    """The lowest gap that top_p keeps among those >= cut, and how many tokens with exactly that gap it drops."""
    kept = gaps if np.isneginf(cut) else gaps[gaps >= cut]
    goal = top_p * float(np.exp(kept).sum(dtype=np.float64))
    # Ranking needs a sort, and the tail rarely matters: rank the head alone where it holds enough of the mass.
    for depth in (4.0, 12.0):
        head = kept[kept >= -depth]
        if float(np.exp(head).sum(dtype=np.float64)) > goal * (1.0 + 1e-9):
            kept = head
            break
    ranked = np.ascontiguousarray(np.sort(kept)[::-1])
    masses = np.exp(ranked)
    # The running sum crosses the goal inside one block; only that block is summed token by token.
    starts = np.arange(0, len(ranked), _BLOCK)
    ends = np.cumsum(np.add.reduceat(masses, starts, dtype=np.float64))
    block = min(int(np.searchsorted(ends, goal)), len(starts) - 1)
    before = float(ends[block - 1]) if block else 0.0
    inside = before + np.cumsum(masses[starts[block] : starts[block] + _BLOCK], dtype=np.float64)
    count = min(int(starts[block]) + int(np.searchsorted(inside, goal)) + 1, len(ranked))
    lowest = ranked[count - 1]
    return lowest, int(np.count_nonzero(ranked >= lowest)) - count


def _sums(gaps: Row, words: NDArray[np.uint32]) -> NDArray[np.float64]:
    """d + G for each token, as the module docstring defines it."""
    uniform = (words.astype(np.float64) + 0.5) * 2.0**-32
    return gaps.astype(np.float64) - np.log(-np.log1p(-uniform))


def forbidden(mask: bytes, width: int) -> NDArray[np.bool_]:
    """For each of `width` ids whether `mask` leaves it out; one bit per id, low bit first, none beyond its end."""
    bits = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), bitorder="little")[:width]
    allowed = np.zeros(width, dtype=np.bool_)
    allowed[: len(bits)] = bits
    return ~allowed


class SamplingTable:
    """Sampling settings and histories by slot; turns logits into tokens.

    The tables live on the host. `device` says where they shall live; only the CPU is there today, and logits of any
    device are accepted. weigh: see RowScratch.
    """

    def __init__(
        self,
        slots: int,
        logits_width: int,
        device: str | torch.device = "cpu",
        weigh: Weigh | None = None,
    ) -> None:
        assert torch.device(device).type == "cpu", "no device kernel reads these tables yet"
        self._width = logits_width
        self._rows: list[SlotSampling | None] = [None] * slots
        self._scratch = RowScratch(logits_width, weigh)

    def grant(self, grant: SlotGrant) -> None:
        """The slot belongs to a new owner: whatever the last one left there is gone."""
        self._rows[grant.slot] = SlotSampling(grant, self._width)

    def sample(
        self,
        logits: Tensor,
        slots: list[int],
        positions: list[int],
        masks: Mapping[int, bytes] | None = None,
    ) -> list[int]:
        """One token per row, and remember it for the slot's penalties.

        logits: [rows, logits_width], float32 or bfloat16, any device, left as they were. slots, positions: one
        per row; a position is the index of the token being chosen. masks: for some slots the tokens that may be
        chosen, one bit per id, low bit first. NON_FINITE stands for a row that holds a NaN, a +inf or no finite
        logit, or has none left after masking; other rows do not notice.
        """
        assert logits.shape == (len(slots), self._width) and len(positions) == len(slots), logits.shape
        tokens = []
        for row, slot, position in zip(logits.detach(), slots, positions, strict=True):
            owner = self._rows[slot]
            assert owner is not None, "a slot is granted before it is sampled"
            mask = None if masks is None else masks.get(slot)
            tokens.append(owner.choose(row.to("cpu", torch.float32).numpy(), position, self._scratch, mask))
        return tokens
