"""Cached paths that somebody holds without computing: pins, kept until they are let go, and favours, kept while
there is other cache to give up. Knows the tree and counts; no clock, no wire format.

A pin holds its pages against everything but one case: nothing runs, and the first in line does not fit beside the
pins. Then the pin that was taken first is broken, and its holder is told: no request waits for ever behind pins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from headrace.runtime.prefix import PrefixLease, PrefixNode, PrefixTree


class Pin:
    """A cached path of `pages` pages that is held for `owner`. `broken()` is called, once, if it is given up
    before it was let go."""

    __slots__ = ("broken", "lease", "owner", "pages")

    def __init__(self, lease: PrefixLease, owner: str, broken: Callable[[], None]) -> None:
        self.lease = lease
        self.owner = owner
        self.broken = broken
        self.pages = lease.pages()


class Favour:
    """A cached path that is evicted after all others."""

    __slots__ = ("node",)

    def __init__(self, node: PrefixNode) -> None:
        self.node: PrefixNode | None = node


class Pins:
    """The pins and favours on one tree. limit: pages that all pins together may hold."""

    def __init__(self, tree: PrefixTree, limit: int) -> None:
        self.tree = tree
        self.limit = limit
        self.broken = 0  # pins given up before their time, since the start
        self._pins: dict[Pin, None] = {}  # the oldest first
        self._pages: Counter[int] = Counter()  # page -> pins on it
        self._owners: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._pins)

    @property
    def pages(self) -> int:
        """Pages that pins hold."""
        return len(self._pages)

    def of(self, owner: str) -> int:
        """How many pins this owner has."""
        return self._owners[owner]

    def take(self, owner: str, favour: Favour, broken: Callable[[], None]) -> Pin | None:
        """A pin on what is still cached of a favoured path; None if it would take pins beyond `limit`."""
        assert favour.node is not None, "a favour that was forgone"
        lease = self.tree.lease_at(favour.node)
        pin = Pin(lease, owner, broken)
        if len(self._pages) + sum(page not in self._pages for page in pin.pages) > self.limit:
            self.tree.release(lease)
            return None
        self._pins[pin] = None
        self._pages.update(pin.pages)
        self._owners[owner] += 1
        return pin

    def drop(self, pin: Pin) -> None:
        """The pin is let go, if it was not already."""
        if pin not in self._pins:
            return
        del self._pins[pin]
        self._pages -= Counter(pin.pages)
        self._owners[pin.owner] -= 1
        if not self._owners[pin.owner]:
            del self._owners[pin.owner]
        self.tree.release(pin.lease)

    def break_one(self) -> bool:
        """The oldest pin is given up, and its holder told. False if there is none."""
        if not self._pins:
            return False
        pin = next(iter(self._pins))
        self.drop(pin)
        self.broken += 1
        pin.broken()
        return True

    def favour(self, salt: str, keys: Sequence[int]) -> Favour:
        """What is cached of `keys` is evicted after what nobody favours."""
        lease = self.tree.match(salt, keys, len(keys) // self.tree.page_size)
        self.tree.keep(lease.node)
        self.tree.release(lease)
        return Favour(lease.node)

    def forgo(self, favour: Favour) -> None:
        """It is cache like any other, if it was not already."""
        node, favour.node = favour.node, None
        if node is not None:
            self.tree.unkeep(node)

    def leases(self) -> list[PrefixLease]:
        return [pin.lease for pin in self._pins]

    def check(self) -> None:
        """Raise AssertionError if what is counted differs from what is held."""
        assert self._pages == Counter(page for pin in self._pins for page in pin.pages)
        assert self._owners == Counter(pin.owner for pin in self._pins)
        assert len(self._pages) <= self.limit
