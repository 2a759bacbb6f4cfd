"""The items of one Realtime session, in order. Bounded by count and bytes; knows no socket and no event.

An item is in the conversation until it is deleted. It is out of the context, but still there, once truncation has
forgotten it: a later turn never brings it back, so the prompt's beginning stays what the cache knows.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from headrace.server.ids import new_id
from headrace.server.protocol import realtime_events as ev
from headrace.server.protocol.codec import encode
from headrace.server.session import WaitingBudget

ITEM_COUNT = 1024
CONVERSATION_BYTES = 32 << 20  # as much as one message may bring in pictures
ITEM_COST = 512  # an item's own objects, beside its JSON

ROOT = "root"  # the place before the first item


@dataclass(slots=True)
class Kept:
    item: ev.Item
    size: int
    forgotten: bool = False


class RealtimeConversation:
    """`budget` counts the bytes of all conversations of the server; `close` gives this one's back."""

    def __init__(
        self, budget: WaitingBudget, *, item_limit: int = ITEM_COUNT, bytes_limit: int = CONVERSATION_BYTES
    ) -> None:
        self.id = new_id("conv")
        self.item_limit = item_limit
        self.bytes_limit = bytes_limit
        self.bytes = 0
        self._budget = budget
        self._items: dict[str, Kept] = {}
        self._order: list[str] = []

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._items

    def find(self, item_id: str) -> ev.Item | None:
        """The item, or None if it is not (any more) in the conversation."""
        kept = self._items.get(item_id)
        return None if kept is None else kept.item

    def calls(self, call_id: str) -> bool:
        """Whether a call of this id is in the conversation."""
        kept = (kept.item for kept in self._items.values())
        return any(isinstance(item, ev.CallItem) and item.call_id == call_id for item in kept)

    def add(self, item: ev.Item, after: str | None = None) -> str | None:
        """Put `item` behind `after` (the end without it); returns the id of the item before it.

        No limit is asked here: an answer that has begun is never refused. `fits` is asked before."""
        assert item.id not in self._items and item.id != ROOT
        assert after is None or after == ROOT or after in self._items
        at = len(self._order)
        if after is not None:
            at = 0 if after == ROOT else self._order.index(after) + 1
        self._order.insert(at, item.id)
        self._items[item.id] = Kept(item, size_of(item))
        self._charge(self._items[item.id].size)
        return self._order[at - 1] if at else None

    def settle(self, item: ev.Item) -> bool:
        """The finished form of an item that was added before; False if it was deleted meanwhile."""
        kept = self._items.get(item.id)
        if kept is None:
            return False
        size = size_of(item)
        self._charge(size - kept.size)
        kept.item, kept.size = item, size
        return True

    def before(self, item_id: str) -> str | None:
        """The id of the item before this one."""
        at = self._order.index(item_id)
        return self._order[at - 1] if at else None

    def remove(self, item_id: str) -> bool:
        """Delete an item; False if it was not there."""
        kept = self._items.pop(item_id, None)
        if kept is None:
            return False
        self._order.remove(item_id)
        self._charge(-kept.size)
        return True

    def fits(self, size: int) -> bool:
        """Whether one more item of `size` bytes stays within this conversation's own limits."""
        return len(self._order) < self.item_limit and self.bytes + size <= self.bytes_limit

    def affordable(self, size: int) -> bool:
        """Whether all conversations of the server together have room for `size` bytes more."""
        return self._budget.fits(size)

    def oldest(self) -> str | None:
        """The first item that no response is writing, or None."""
        for item_id in self._order:
            if self._items[item_id].item.status != "in_progress":
                return item_id
        return None

    def context(self) -> list[ev.Item]:
        """What the model is shown: finished items that were not forgotten, in order."""
        kept = [self._items[item_id] for item_id in self._order]
        return [k.item for k in kept if not k.forgotten and k.item.status != "in_progress"]

    def forget(self, items: Collection[ev.Item]) -> None:
        """Leave these items out of every later context."""
        for item in items:
            if (kept := self._items.get(item.id)) is not None:
                kept.forgotten = True

    def close(self) -> None:
        """Empty, and nothing counted. Called once, at the end of the session."""
        self._charge(-self.bytes)
        self._items.clear()
        self._order.clear()

    def check(self) -> None:
        """Raise AssertionError if the books differ from what is there."""
        assert sorted(self._order) == sorted(self._items)
        assert self.bytes == sum(kept.size for kept in self._items.values())
        assert all(kept.size == size_of(kept.item) for kept in self._items.values())

    def _charge(self, size: int) -> None:
        self.bytes += size
        self._budget.charge(size)


def size_of(item: ev.Item) -> int:
    """What an item is counted with."""
    return ITEM_COST + len(encode(item))
