"""What one step runs: frozen ids and lengths. Knows no tensor; the Engine turns it into tensors."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from headrace.runtime.image import Image, ImageSpan
from headrace.runtime.logprobs import Logprobs
from headrace.runtime.request import SamplingParams, TokenGrammar


@dataclass(frozen=True, slots=True)
class SlotGrant:
    """Slot `slot` belongs to request `req_id` from this step on.

    The Engine resets every per-slot table from it: page table (`pages`, in order), sampling parameters, and,
    when `params.needs_history`, the token history (`history`: all known tokens; the first `prompt_len` of
    them are the prompt). `history` is empty when no penalty needs it. `spans`: the pictures in its prompt; they
    decide where its tokens stand, whatever of them is computed. guided: every sampling row of it comes with a
    SlotMask.
    """

    slot: int
    req_id: int
    params: SamplingParams
    prompt_len: int
    pages: tuple[int, ...]
    history: tuple[int, ...]
    spans: tuple[ImageSpan, ...] = ()
    guided: bool = False


@dataclass(frozen=True, slots=True)
class PagePatch:
    """Entry `index` of the page table of `slot` becomes `page`."""

    slot: int
    index: int
    page: int


@dataclass(frozen=True, slots=True)
class PageCopy:
    """The whole of page `source` is copied to page `target`, before any row of the step writes or reads."""

    source: int
    target: int


@dataclass(frozen=True, slots=True)
class ImageEncode:
    """`image` goes through stages [first, last) of the tower, before any row of the step reads; behind the last one
    of all, its rows are in `blocks`. Stage 0 begins anew: whatever was begun and not done is forgotten."""

    image: Image
    blocks: tuple[int, ...]
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class ImageRows:
    """Tokens [at, at + count) of a PlanRow are rows [first, first + count) of the picture in `blocks`."""

    at: int
    count: int
    first: int
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PlanRow:
    """Compute the KV of tokens [start, start + count) of the request in `slot`.

    ids: the token ids, or None for a decode row (count 1), whose token is the last one sampled for this slot
    and lives on the device. sample: choose the token at index start + count (that index keys its randomness)
    and keep it as the slot's last token. The row may read KV of [0, start + count) through the page table.
    images: which of its tokens are a picture's; their ids are the placeholder's.
    """

    req_id: int
    slot: int
    start: int
    count: int
    ids: tuple[int, ...] | None
    sample: bool
    images: tuple[ImageRows, ...] = ()


class DecodeRows(Sequence[PlanRow]):
    """Decode rows as columns: row i continues request `req_ids[i]` in `slots[i]` with the token at `starts[i]`.

    There is one for every stream in every step, and who is in a hurry wants columns: a row is made when it is asked
    for. Nobody changes them, like everything in a plan."""

    __slots__ = ("req_ids", "slots", "starts")

    def __init__(self, req_ids: Sequence[int], slots: array[int], starts: array[int]) -> None:
        """slots, starts: of type code "i", so that they are copied into a block as they are."""
        self.req_ids = req_ids
        self.slots = slots
        self.starts = starts

    def __len__(self) -> int:
        return len(self.slots)

    @overload
    def __getitem__(self, at: int) -> PlanRow: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[PlanRow, ...]: ...
    def __getitem__(self, at: int | slice) -> PlanRow | tuple[PlanRow, ...]:
        if isinstance(at, slice):
            return tuple(self)[at]
        return PlanRow(self.req_ids[at], self.slots[at], self.starts[at], 1, None, True)

    def __iter__(self) -> Iterator[PlanRow]:
        for req_id, slot, start in zip(self.req_ids, self.slots, self.starts, strict=True):
            yield PlanRow(req_id, slot, start, 1, None, True)

    def __repr__(self) -> str:
        return repr(tuple(self))


@dataclass(frozen=True, slots=True)
class Probe:
    """Logprobs wanted of row `row` of StepPlan.rows: of `ids`, which follow the row's tokens `first`,
    `first + 1`... (counted in the row; only prefill rows have any), then, if the row samples, of the token that
    it chooses; each with the `top` most likely tokens of its place."""

    row: int
    top: int
    first: int
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SlotMask:
    """The token sampled for `slot` in this step is one that `grammar` allows.

    The Engine asks for its mask while the step is in flight: nobody moves the grammar before it has landed.
    """

    slot: int
    grammar: TokenGrammar


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step, in order: grants, patches, copies, encodes, then all rows at once (decode first, then prefill).

    A promise: the scheduler has already moved its state forward as if the step had run. Rows are for distinct
    slots. `prefill_tokens` is the sum of counts over `prefill`. `probes`: in the order of their rows; a step
    without any costs nothing for those that have some.
    """

    number: int
    grants: tuple[SlotGrant, ...]
    patches: tuple[PagePatch, ...]
    copies: tuple[PageCopy, ...]
    decode: Sequence[PlanRow]
    prefill: tuple[PlanRow, ...]
    masks: tuple[SlotMask, ...] = ()
    probes: tuple[Probe, ...] = ()
    encodes: tuple[ImageEncode, ...] = ()

    @property
    def rows(self) -> tuple[PlanRow, ...]:
        return (*self.decode, *self.prefill)

    @property
    def prefill_tokens(self) -> int:
        return sum([row.count for row in self.prefill]) if self.prefill else 0


Price = Callable[[Image], int]


def row_price(image: Image) -> int:
    """One prompt token for each row: what is taken where nobody knows better."""
    return image.rows


class OpenPlan:
    """A StepPlan while it is put together. `room`: prompt tokens that it still takes. price: how many prompt tokens
    take as long as the encode of a picture."""

    __slots__ = ("copies", "encodes", "grants", "patches", "prefill", "price", "room")

    def __init__(self, room: int, price: Price = row_price) -> None:
        self.room = room
        self.price = price
        self.grants: list[SlotGrant] = []
        self.patches: list[PagePatch] = []
        self.copies: list[PageCopy] = []
        self.prefill: list[PlanRow] = []
        self.encodes: list[ImageEncode] = []

    def take(self, row: PlanRow) -> None:
        """One chunk more."""
        assert row.count >= 1
        self.prefill.append(row)
        self.room -= row.count

    @property
    def fresh(self) -> bool:
        """Nothing of any prompt is in it yet, and no picture."""
        return not self.prefill and not self.encodes

    def encode(self, encode: ImageEncode, cost: int) -> None:
        """The step's one picture, or a part of it; it takes `cost` of the room."""
        assert not self.encodes, "a step encodes one picture at most"
        self.encodes.append(encode)
        self.room -= cost

    def close(
        self,
        number: int,
        decode: Sequence[PlanRow],
        masks: tuple[SlotMask, ...] = (),
        probes: tuple[Probe, ...] = (),
    ) -> StepPlan | None:
        """The plan, or None if it has nothing to compute."""
        parts = (self.grants, self.patches, self.copies)
        if not decode and not self.prefill and not self.encodes:
            assert not any(parts), "a page was granted to nobody's step"
            return None
        return StepPlan(
            number,
            tuple(self.grants),
            tuple(self.patches),
            tuple(self.copies),
            decode,
            tuple(self.prefill),
            masks,
            probes,
            tuple(self.encodes),
        )


NON_FINITE = -1


@dataclass(frozen=True, slots=True)
class StepResult:
    """What landed: one token per sampling row, in the order of `StepPlan.rows`.

    NON_FINITE stands for a row whose logits held a NaN or no finite value: that request fails, alone. `logprobs`:
    one place for each token that the plan's probes want, in their order; None without probes.
    """

    tokens: tuple[int, ...]
    logprobs: Logprobs | None = None
