"""What a fork takes over of its parent's KV: whole pages to share, and a part page to copy. Ids and lengths only.

A parent that lives has its pages. One that has ended left its whole pages in the prefix cache, as far as that still
has them, and the page that was not full to `Remnants`, if somebody may fork it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from headrace.runtime.pages import PagePool
from headrace.runtime.prefix import PrefixTree
from headrace.runtime.request import Phase, Req


class Sources:
    """Pages that wait to be copied, or are being copied: each copy holds its source once."""

    __slots__ = ("_counts", "_pool")

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._counts: dict[int, int] = {}

    def hold(self, page: int, salt: str) -> None:
        """One copy more needs `page`."""
        self._pool.share(page, salt)
        self._counts[page] = self._counts.get(page, 0) + 1

    def drop(self, page: int) -> None:
        """One copy less needs `page`."""
        self._counts[page] -= 1
        if not self._counts[page]:
            del self._counts[page]
        self._pool.drop(page)

    def __contains__(self, page: int) -> bool:
        return page in self._counts

    def __iter__(self) -> Iterator[int]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)

    @property
    def counts(self) -> dict[int, int]:
        """How many copies hold each page."""
        return self._counts


class Remnants:
    """The last, partly filled pages of requests that have ended and may be forked. A cache: the oldest go first
    when pages are needed, and before anything else does.

    Each is owned once, by this table; it is never written again."""

    __slots__ = ("_left", "_pool")

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._left: OrderedDict[int, tuple[int, int]] = (
            OrderedDict()
        )  # request id -> page, tokens of KV up to there

    def __len__(self) -> int:
        return len(self._left)

    def pages(self) -> Iterator[int]:
        """Every page that is kept here."""
        return (page for page, _ in self._left.values())

    def keep(self, req: Req, size: int) -> None:
        """`req` is about to give its pages back: its part page stays, if what stands before it is in the cache."""
        landed = min(req.landed_len, len(req.tokens))
        full = landed // size
        # Having sampled, it has read all that it computed: nothing of it is not finite.
        sound = req.output_len > 0 and not req.spoilt
        if sound and landed % size and req.lease is not None and req.lease.depth == full:
            page = req.pages[full]
            self._pool.share(page, req.salt)
            self._left[req.id] = page, landed

    def find(self, req_id: int) -> tuple[int, int] | None:
        """The page that this request left, and how many leading tokens of it have KV with it."""
        return self._left.get(req_id)

    def drop_one(self) -> bool:
        """Let go of the oldest; False if there is none. Its page is free, unless it is being copied."""
        if not self._left:
            return False
        _, (page, _) = self._left.popitem(last=False)
        self._pool.drop(page)
        return True


def share_parent(req: Req, tree: PrefixTree, sources: Sources, remnants: Remnants, *, cached: bool) -> None:
    """Take the references of a fork. cached: there is a prefix cache."""
    assert req.fork is not None
    parent, at = req.fork.parent, req.fork.at
    assert parent.salt == req.salt, "a fork stays within its tenant"
    assert 0 <= at <= len(parent.tokens)
    assert req.keys(0, at) == parent.keys(0, at), "a fork repeats its parent up to the fork point"
    # The parent is not kept: a long chain of forks would keep all its ancestors and their tokens alive.
    req.fork = None
    req.forked_len = at
    at = min(at, req.reusable_len)
    if parent.phase is not Phase.DONE:
        _share_living(req, parent, at, tree, sources)
    elif cached:
        _share_left(req, parent, at, tree, sources, remnants)


def _share_living(req: Req, parent: Req, at: int, tree: PrefixTree, sources: Sources) -> None:
    size = tree.page_size
    shared = min(at, parent.landed_len, len(parent.pages) * size)
    if not shared:
        return  # no lease either: at admission the cache may hold what the parent has not landed yet
    full = shared // size
    if parent.lease is not None:
        req.lease = tree.lease_upto(parent.lease, min(full, parent.lease.depth))
    _take(
        req, parent.pages[:full], parent.pages[full] if shared > full * size else None, shared, tree, sources
    )


def _share_left(
    req: Req, parent: Req, at: int, tree: PrefixTree, sources: Sources, remnants: Remnants
) -> None:
    size = tree.page_size
    full = at // size
    # One page more than is shared whole: a fork point in the middle of a cached page copies from it.
    found = tree.match(req.salt, parent.keys(0, (full + 1) * size), full + (at > full * size))
    source, shared = None, min(found.depth, full) * size
    left = remnants.find(parent.id)
    if found.depth > full:
        source, shared = found.node.page, at
    elif left is not None and left[1] // size == found.depth:  # it goes on right behind those pages
        source, shared = left[0], min(at, left[1])
    if shared:
        req.lease = tree.lease_upto(found, min(found.depth, full))
        _take(
            req, req.lease.pages(), source if shared > req.lease.depth * size else None, shared, tree, sources
        )
    tree.release(found)


def _take(
    req: Req, pages: list[int], source: int | None, shared: int, tree: PrefixTree, sources: Sources
) -> None:
    for page in pages:
        tree.pool.share(page, req.salt)
        req.pages.append(page)
    req.computed_len = req.landed_len = len(pages) * tree.page_size
    if source is not None:
        req.copy_from, req.copy_len = source, shared
        sources.hold(source, req.salt)
