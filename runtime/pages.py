"""Who owns which page and which slot. Plain integers; knows nothing of what a page holds."""

from __future__ import annotations

import heapq
from collections.abc import Mapping


class PagePool:
    """KV pages 0..count-1 with reference counts. A page belongs to one salt from `take` until it is free again.

    Lowest numbers are given out first: neighbours in a page table tend to be neighbours in memory, which lets
    a backend read a run of pages as one view instead of gathering it.
    """

    __slots__ = ("_free", "_refs", "_salts", "count")

    def __init__(self, count: int) -> None:
        assert count >= 1
        self.count = count
        self._free = list(range(count))  # a heap; sorted is one
        self._refs = [0] * count
        self._salts: list[str | None] = [None] * count

    @property
    def free_count(self) -> int:
        return len(self._free)

    @property
    def used_count(self) -> int:
        return self.count - len(self._free)

    def refs(self, page: int) -> int:
        return self._refs[page]

    def salt(self, page: int) -> str | None:
        return self._salts[page]

    def take(self, salt: str) -> int:
        """A free page, now owned once under `salt`. The caller has checked that one is free."""
        assert self._free, "take() without a free page: the caller checks free_count first"
        page = heapq.heappop(self._free)
        assert self._refs[page] == 0
        self._refs[page] = 1
        self._salts[page] = salt
        return page

    def share(self, page: int, salt: str) -> None:
        """One more owner of a page that already has one, under the same salt."""
        assert self._refs[page] > 0, f"page {page} is free: nothing to share"
        assert self._salts[page] == salt, f"page {page} belongs to another tenant"
        self._refs[page] += 1

    def drop(self, page: int) -> None:
        """One owner less; the last one frees the page."""
        assert self._refs[page] > 0, f"page {page} is dropped more often than it was taken"
        self._refs[page] -= 1
        if self._refs[page] == 0:
            self._salts[page] = None
            heapq.heappush(self._free, page)

    def check(self, owners: Mapping[int, int] | None = None) -> None:
        """Raise AssertionError unless free and owned pages add up; with `owners`, unless every count is exact."""
        assert len(set(self._free)) == len(self._free), "a page is free twice"
        for page in self._free:
            assert self._refs[page] == 0 and self._salts[page] is None, f"free page {page} has an owner"
        assert sum(1 for n in self._refs if n == 0) == len(self._free), "an unowned page is not free"
        if owners is not None:
            for page in range(self.count):
                want = owners.get(page, 0)
                assert self._refs[page] == want, f"page {page}: {self._refs[page]} references, {want} owners"


class SlotPool:
    """Rows of the device tables, lowest first, so that the rows in use stay dense."""

    __slots__ = ("_free", "count")

    def __init__(self, count: int) -> None:
        assert count >= 1
        self.count = count
        self._free = list(range(count))

    @property
    def free_count(self) -> int:
        return len(self._free)

    def take(self) -> int:
        assert self._free, "take() without a free slot"
        return heapq.heappop(self._free)

    def give_back(self, slot: int) -> None:
        assert 0 <= slot < self.count and slot not in self._free, f"slot {slot} is given back twice"
        heapq.heappush(self._free, slot)

    def check(self, held: set[int]) -> None:
        assert held.isdisjoint(self._free), "a held slot is free"
        assert len(held) + len(self._free) == self.count, "a slot is lost"
