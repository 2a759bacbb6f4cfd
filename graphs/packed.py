"""The inputs of one step as one block of int32 words: filled on the host, copied to the device in one piece, and
read there by a captured graph at fixed places. Knows shapes, no model and no plan.

Tokens lie flat: `decode` rows of one token each, padded; then `chunk` tokens of the prefill rows, padded. Tails
hold what FIELDS says, so that a padded step computes exactly what an exact one would.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from headrace.graphs.inputs import FROM_SLOT

Words = NDArray[np.int32]
Axis = Literal["tokens", "decode", "rows", "edges", "tiles", "samples", "writes"]

TILE = 64  # queries of one prefill row that one attention program takes together
INLINE_WRITES = 256  # table writes that travel with a step; more go ahead of it in launches of their own


@dataclass(frozen=True, slots=True)
class PackedField:
    """One array inside the block: which count sizes it, what fills its tail, and why that is harmless."""

    axis: Axis
    pad: int
    why: str


FIELDS: dict[str, PackedField] = {
    "token_ids": PackedField("tokens", 0, "slot -1 embeds to zeros whatever the id"),
    "positions": PackedField("tokens", 0, "a valid angle; nothing is stored for slot -1"),
    "token_slots": PackedField("tokens", -1, "every kernel leaves slot -1 alone"),
    "decode_lengths": PackedField("decode", 0, "no token to attend to"),
    "row_slots": PackedField("rows", -1, "no tile points at the row"),
    "row_lengths": PackedField("rows", 0, "no tile points at the row"),
    "row_offsets": PackedField("edges", 0, "no tile points at the row"),
    "tile_rows": PackedField("tiles", -1, "attention returns at row -1"),
    "tile_starts": PackedField("tiles", 0, "attention returns at row -1"),
    "sample_tokens": PackedField("samples", 0, "logits of token 0 once more; the sampler skips slot -1"),
    "sample_slots": PackedField("samples", -1, "the sampler skips slot -1"),
    "sample_positions": PackedField("samples", 0, "the sampler skips slot -1"),
    "write_places": PackedField("writes", -1, "nothing is written at place -1"),
    "write_values": PackedField("writes", 0, "nothing is written at place -1"),
}


@dataclass(frozen=True, slots=True)
class StepKey:
    """The padded counts of a step; equal keys replay the same graph. `rows` prefill rows share `chunk` tokens."""

    decode: int
    chunk: int = 0
    rows: int = 0

    def __post_init__(self) -> None:
        assert self.decode >= 0 and self.chunk >= 0 and self.rows >= 0
        assert (self.chunk == 0) == (self.rows == 0) and self.decode + self.chunk > 0

    @property
    def tokens(self) -> int:
        return self.decode + self.chunk

    @property
    def samples(self) -> int:
        """Every decode row is sampled, and every prefill row may be."""
        return self.decode + self.rows

    @property
    def tiles(self) -> int:
        """Each row adds at most one tile that is not full."""
        return self.chunk // TILE + self.rows if self.rows else 0

    def count(self, axis: Axis) -> int:
        return {
            "tokens": self.tokens,
            "decode": self.decode,
            "rows": self.rows,
            "edges": self.rows + 1 if self.rows else 0,
            "tiles": self.tiles,
            "samples": self.samples,
            "writes": INLINE_WRITES,
        }[axis]


ALIGN = 4  # words: every array begins on 16 bytes, as Triton likes its pointers


@cache
def places(key: StepKey) -> tuple[dict[str, tuple[int, int]], int]:
    """(first word, end) of every field in a block of `key`, and the words of the whole block."""
    found: dict[str, tuple[int, int]] = {}
    at = 0
    for name, field in FIELDS.items():
        end = at + key.count(field.axis)
        found[name] = (at, end)
        at = -(-end // ALIGN) * ALIGN
    return found, at


@dataclass(frozen=True, slots=True)
class PackedStep:
    """Device views of one block, all int32. token_ids, positions, token_slots [tokens]; decode_lengths [decode]:
    KV length of each decode row after this step; row_slots, row_lengths [rows], row_offsets [rows + 1], in chunk
    tokens; tile_rows, tile_starts [tiles]: the prefill row of a tile and its first query in the row; sample_*
    [samples]; write_* [INLINE_WRITES]: table words to set before anything else."""

    key: StepKey
    token_ids: Tensor
    positions: Tensor
    token_slots: Tensor
    decode_lengths: Tensor
    row_slots: Tensor
    row_lengths: Tensor
    row_offsets: Tensor
    tile_rows: Tensor
    tile_starts: Tensor
    sample_tokens: Tensor
    sample_slots: Tensor
    sample_positions: Tensor
    write_places: Tensor
    write_values: Tensor


def view_block(key: StepKey, block: Tensor) -> PackedStep:
    """The fields of `key` inside `block`, int32, at least as long as `places` says."""
    where, words = places(key)
    assert block.numel() >= words, (block.numel(), words)
    return PackedStep(key, **{name: block[first:end] for name, (first, end) in where.items()})


@lru_cache(maxsize=1024)
def _blank(key: StepKey, count: int) -> Words:
    """A block of `key` with everything that a step of `count` decode rows always holds, tails included."""
    where, words = places(key)
    found = np.zeros(words, dtype=np.int32)
    for name, (first, end) in where.items():
        found[first:end] = FIELDS[name].pad
    for name, values in (("token_ids", FROM_SLOT), ("sample_tokens", np.arange(count))):
        found[where[name][0] : where[name][0] + count] = values
    return found


class PackedRow(Protocol):
    """One row as numbers: tokens [start, start + count) of `slot`; `ids` is None where the slot's last token is
    meant (count 1)."""

    @property
    def slot(self) -> int: ...

    @property
    def start(self) -> int: ...

    @property
    def count(self) -> int: ...

    @property
    def ids(self) -> Sequence[int] | None: ...

    @property
    def sample(self) -> bool: ...


def pack(
    key: StepKey,
    block: Words,
    decode: Sequence[PackedRow],
    prefill: Sequence[PackedRow],
    writes: tuple[Sequence[int], Sequence[int]] = ((), ()),
) -> None:
    """Fill `block` with a step of at most `key`'s counts. `writes`: at most INLINE_WRITES places and values. Decode
    rows that have their columns at hand (`slots` and `starts`, arrays of "i"; no ids) are taken by these.

    Sampled rows are, in order: all decode rows, then the prefill rows; a prefill row that is not sampled keeps its
    place with slot -1."""
    where, words = places(key)
    count = len(decode)
    assert count <= key.decode and len(prefill) <= key.rows and len(writes[0]) <= INLINE_WRITES

    def put(name: str, values: Sequence[int], offset: int = 0) -> None:
        first, end = where[name]
        tail = first + offset + len(values)
        assert tail <= end, name
        block[first + offset : tail] = values
        block[tail:end] = FIELDS[name].pad

    # A decode row is one word in each of five arrays: columns, views and one copy of all that is the same in every
    # such step, instead of a loop over rows and an assignment for every tail.
    view = block.data
    view[:words] = _blank(key, count).data
    if count:
        slots, starts = getattr(decode, "slots", None), getattr(decode, "starts", None)
        if not (isinstance(slots, array) and isinstance(starts, array)):
            slots, starts = (array("i", [getattr(row, name) for row in decode]) for name in ("slot", "start"))
            ids = array("i", [FROM_SLOT if row.ids is None else row.ids[0] for row in decode])
            view[where["token_ids"][0] : where["token_ids"][0] + count] = ids
        after = (np.asarray(starts) + np.int32(1)).data
        for name, column in (
            ("positions", starts),
            ("token_slots", slots),
            ("decode_lengths", after),
            ("sample_slots", slots),
            ("sample_positions", after),
        ):
            first = where[name][0]
            view[first : first + count] = column
    if writes[0]:
        put("write_places", writes[0])
        put("write_values", writes[1])
    if not key.rows:
        return
    edge = 0
    tile_rows: list[int] = []
    tile_starts: list[int] = []
    edges = [0]
    sample_tokens: list[int] = []
    sample_slots: list[int] = []
    first_id, first_position, first_slot = (
        where[name][0] + key.decode for name in ("token_ids", "positions", "token_slots")
    )
    for index, row in enumerate(prefill):
        assert row.ids is not None or row.count == 1
        end = edge + row.count
        assert end <= key.chunk
        block[first_id + edge : first_id + end] = FROM_SLOT if row.ids is None else row.ids
        block[first_position + edge : first_position + end] = np.arange(row.start, row.start + row.count)
        block[first_slot + edge : first_slot + end] = row.slot
        for start in range(0, row.count, TILE):
            tile_rows.append(index)
            tile_starts.append(start)
        edge = end
        edges.append(edge)
        sample_tokens.append(key.decode + end - 1)
        sample_slots.append(row.slot if row.sample else -1)
    for name, first in (("token_ids", first_id), ("positions", first_position), ("token_slots", first_slot)):
        block[first + edge : where[name][1]] = FIELDS[name].pad
    put("row_slots", [row.slot for row in prefill])
    put("row_lengths", [row.start + row.count for row in prefill])
    put("row_offsets", edges)
    put("tile_rows", tile_rows)
    put("tile_starts", tile_starts)
    put("sample_tokens", sample_tokens, key.decode)
    put("sample_slots", sample_slots, key.decode)
    put("sample_positions", [row.start + row.count for row in prefill], key.decode)
