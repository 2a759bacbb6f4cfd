"""Where the tokens of each slot stand on the axes of a model that sees. Written at a grant, read when a step is
made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headrace.runtime.image import ImageSpan
from headrace.runtime.models.axes import places, shift_after
from headrace.runtime.plan import PlanRow, SlotGrant


class SlotSpans:
    """`shift[slot]`: from the index of a token behind all pictures of a slot to its place on the axes."""

    def __init__(self, slots: int) -> None:
        self.shift = np.zeros(slots, dtype=np.int64)
        self._spans: list[tuple[ImageSpan, ...]] = [()] * slots

    def grant(self, grant: SlotGrant) -> None:
        """The slot has a new owner."""
        self._spans[grant.slot] = grant.spans
        self.shift[grant.slot] = shift_after(grant.spans)

    def settled(self, rows: Sequence[PlanRow]) -> bool:
        """True if all tokens of `rows` stand behind the last picture of their slot."""
        return all(not (spans := self._spans[row.slot]) or row.start >= spans[-1].end for row in rows)

    def angles(
        self, decode: Sequence[PlanRow], prefill: Sequence[PlanRow], first: int, total: int
    ) -> NDArray[np.int32] | None:
        """[3, total] for a step whose prompt tokens begin at `first`; None where all stand at their index."""
        slots = [row.slot for row in decode]
        if not self.shift[slots].any() and not any(self._spans[row.slot] for row in prefill):
            return None
        found = np.zeros((3, total), dtype=np.int32)
        found[:, : len(slots)] = np.array([row.start for row in decode], dtype=np.int64) + self.shift[slots]
        at = first
        for row in prefill:
            found[:, at : at + row.count] = places(self._spans[row.slot], row.start, row.count)
            at += row.count
        return found
