"""Which page sequences are cached: a tree of whole pages, one root per tenant salt.

A node is one page; its key is the page's tokens, compared in full on a hit. A node's page is complete and
landed, and is never written again. The tree owns one reference of each of its pages. A path that turns out to
hold a NaN is condemned: it leaves the tree at once, and leases on it go on as leases on nothing.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence

from headrace.runtime.pages import PagePool


class PrefixNode:
    """One cached page. `leases` counts the leases on this node and below it: 0 means it may be evicted once it
    has no children. `kept`, counted likewise: if not 0, it is evicted after those with 0."""

    __slots__ = ("attached", "children", "depth", "kept", "key", "leases", "page", "parent", "salt", "stamp")

    def __init__(self, salt: str, key: tuple[int, ...], page: int, parent: PrefixNode | None) -> None:
        self.salt = salt
        self.key = key
        self.page = page
        self.parent = parent
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.children: dict[tuple[int, ...], PrefixNode] = {}
        self.leases = 0
        self.kept = 0
        self.stamp = 0
        self.attached = True


class PrefixLease:
    """A promise that the path from the root to `node` stays cached. Moves forward as its owner fills pages."""

    __slots__ = ("node", "released")

    def __init__(self, node: PrefixNode) -> None:
        self.node = node
        self.released = False

    @property
    def depth(self) -> int:
        """Pages on the path."""
        return self.node.depth

    def pages(self) -> list[int]:
        """The pages of the path, first page first."""
        found: list[int] = []
        node: PrefixNode | None = self.node
        while node is not None and node.parent is not None:
            found.append(node.page)
            node = node.parent
        found.reverse()
        return found


class PrefixTree:
    """Match, extend, keep, evict, condemn. Eviction takes the least recently released leaf first, and those that
    are kept last.

    Leaves that may be evicted wait in two heaps, kept ones and others, of (stamp, order, node). Entries are never
    removed from their middle; a popped entry counts only if the node is still attached, childless, unleased, of
    that heap, and carries that stamp.
    """

    __slots__ = ("_by_page", "_clock", "_heaps", "_order", "_roots", "idle_pages", "page_size", "pool")

    def __init__(self, pool: PagePool, page_size: int) -> None:
        assert page_size >= 1
        self.pool = pool
        self.page_size = page_size
        self.idle_pages = 0  # nodes without a lease: their pages come back under pressure
        self._roots: dict[str, PrefixNode] = {}
        self._by_page: dict[int, PrefixNode] = {}
        self._clock = 0
        self._order = itertools.count()
        self._heaps: dict[bool, list[tuple[int, int, PrefixNode]]] = {False: [], True: []}  # by `kept`

    @property
    def cached_pages(self) -> int:
        return len(self._by_page)

    def is_idle(self, page: int) -> bool:
        """True if `page` is cached and nobody leases it: eviction would take it out of the tree."""
        node = self._by_page.get(page)
        return node is not None and node.leases == 0

    def match(self, salt: str, tokens: Sequence[int], max_pages: int) -> PrefixLease:
        """Lease the longest cached path that equals the beginning of `tokens`, at most `max_pages` long."""
        node = self._roots.get(salt)
        if node is None:
            node = self._roots[salt] = PrefixNode(salt, (), -1, None)
        size = self.page_size
        for index in range(max_pages):
            child = node.children.get(tuple(tokens[index * size : (index + 1) * size]))
            if child is None:
                break
            node = child
        return self._lease(node)

    def lease_upto(self, lease: PrefixLease, depth: int) -> PrefixLease:
        """A new lease on the first `depth` pages of another lease's path."""
        assert 0 <= depth <= lease.depth
        node = lease.node
        while node.depth > depth:
            assert node.parent is not None
            node = node.parent
        return self._lease(node)

    def lease_at(self, node: PrefixNode) -> PrefixLease:
        """A new lease on the path to `node`, as far as it is still in the tree."""
        while not node.attached:
            assert node.parent is not None, "roots stay"
            node = node.parent
        return self._lease(node)

    def extend(self, lease: PrefixLease, key: tuple[int, ...], page: int) -> bool:
        """Move the lease one page forward to the child `key`. True if `page` became that child's page; False if
        equal content was there already, and `page` stays its owner's private copy. Not on a condemned path."""
        assert not lease.released and len(key) == self.page_size and lease.node.attached
        parent = lease.node
        child = parent.children.get(key)
        adopted = child is None
        if child is None:
            self.pool.share(page, parent.salt)
            child = PrefixNode(parent.salt, key, page, parent)
            parent.children[key] = child
            self._by_page[page] = child
            self.idle_pages += 1
        if child.leases == 0:
            self.idle_pages -= 1
        child.leases += 1
        lease.node = child
        return adopted

    def release(self, lease: PrefixLease) -> None:
        """End a lease; what nobody leases any more may be evicted, least recently released first."""
        assert not lease.released, "a lease ends once"
        lease.released = True
        self._clock += 1
        leaf = node = lease.node
        leaf.stamp = self._clock
        while node.parent is not None:
            node.leases -= 1
            assert node.leases >= 0
            if node.leases == 0 and node.attached:
                self.idle_pages += 1
            node = node.parent
        node.leases -= 1
        self._offer(leaf)
        self._forget_empty_root(node)

    def evict_one(self) -> bool:
        """Take the least recently used idle leaf out of the tree, a kept one only if there is no other. False if
        there is none.

        Its page becomes free only if the tree was its last owner."""
        return self._evict_of(False) or self._evict_of(True)

    def keep(self, node: PrefixNode) -> None:
        """Count `node` and the path to it as kept once more."""
        self._count_kept(node, 1)

    def unkeep(self, node: PrefixNode) -> None:
        """Once less; also where the node is out of the tree by now."""
        self._count_kept(node, -1)

    def _count_kept(self, node: PrefixNode, by: int) -> None:
        step: PrefixNode | None = node
        root = node
        while step is not None:
            step.kept += by
            assert step.kept >= 0
            self._offer(step)  # it may have changed its heap
            root, step = step, step.parent
        self._forget_empty_root(root)

    def _evict_of(self, kept: bool) -> bool:
        heap = self._heaps[kept]
        while heap:
            stamp, _, node = heapq.heappop(heap)
            if not (node.attached and node.leases == 0 and not node.children and node.stamp == stamp):
                continue
            if bool(node.kept) is not kept:
                continue
            parent = node.parent
            assert parent is not None, "roots are never offered"
            del parent.children[node.key]
            self._forget(node)
            parent.stamp = max(parent.stamp, node.stamp)
            self._offer(parent)
            self._forget_empty_root(parent)
            return True
        return False

    def clear(self) -> int:
        """Evict everything that nobody leases; the number of pages taken out."""
        evicted = 0
        while self.evict_one():
            evicted += 1
        return evicted

    def condemn(self, lease: PrefixLease) -> None:
        """End the lease, and take its path and all that hangs on it out of the tree: nobody finds it again.

        Which page of the path is bad is not known, so none of it is trusted. Others who lease or map these
        pages keep them; what they compute on top stays theirs alone."""
        top: PrefixNode = lease.node
        while top.parent is not None and top.parent.parent is not None:
            top = top.parent
        if top.parent is not None and top.attached:
            del top.parent.children[top.key]
            stack = [top]
            while stack:
                node = stack.pop()
                stack.extend(node.children.values())
                node.children.clear()
                self._forget(node)
        self.release(lease)

    def nodes(self) -> Iterator[PrefixNode]:
        """Every cached page's node, in no particular order."""
        stack = list(self._roots.values())
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            if node.parent is not None:
                yield node

    def check(self, leases: Sequence[PrefixLease] | None = None) -> None:
        """Raise AssertionError if links, counts, salts or (with `leases`: all live ones) lease counts are off."""
        waiting = {
            id(node)
            for kept, heap in self._heaps.items()
            for stamp, _, node in heap
            if node.stamp == stamp and bool(node.kept) is kept
        }
        total = idle = 0
        for node in self.nodes():
            total += 1
            idle += node.leases == 0
            assert node.attached and node.parent is not None
            assert node.parent.children[node.key] is node and node.parent.depth == node.depth - 1
            assert len(node.key) == self.page_size
            assert self.pool.refs(node.page) >= 1 and self.pool.salt(node.page) == node.salt
            assert node.leases >= sum(child.leases for child in node.children.values())
            assert node.kept >= sum(child.kept for child in node.children.values())
            if node.leases == 0 and not node.children:
                assert id(node) in waiting, "an idle leaf can never be evicted"
            assert self._by_page.get(node.page) is node
        assert total == len(self._by_page) and idle == self.idle_pages
        if leases is not None:
            want: dict[int, int] = {}
            for lease in leases:
                node_or_none: PrefixNode | None = lease.node
                while node_or_none is not None:
                    want[id(node_or_none)] = want.get(id(node_or_none), 0) + 1
                    node_or_none = node_or_none.parent
            for node in itertools.chain(self.nodes(), self._roots.values()):
                assert node.leases == want.get(id(node), 0), "a lease is lost or counted twice"

    def _lease(self, node: PrefixNode) -> PrefixLease:
        lease = PrefixLease(node)
        step: PrefixNode | None = node
        while step is not None:
            if step.leases == 0 and step.parent is not None and step.attached:
                self.idle_pages -= 1
            step.leases += 1
            step = step.parent
        return lease

    def _forget(self, node: PrefixNode) -> None:
        """The node is out of the tree; its page is free if nobody else holds it."""
        node.attached = False
        del self._by_page[node.page]
        self.idle_pages -= node.leases == 0
        self.pool.drop(node.page)

    def _offer(self, node: PrefixNode) -> None:
        """Put an idle leaf where eviction finds it. Stale entries are swept when they outnumber the nodes."""
        if node.parent is None or node.leases or node.children or not node.attached:
            return
        which = bool(node.kept)
        heap = self._heaps[which]
        heapq.heappush(heap, (node.stamp, next(self._order), node))
        if len(heap) > 2 * len(self._by_page) + 64:
            fresh: dict[int, tuple[int, int, PrefixNode]] = {}
            for entry in heap:
                stamp, _, each = entry
                idle = each.attached and not each.leases and not each.children
                if idle and each.stamp == stamp and bool(each.kept) is which:
                    fresh[id(each)] = entry
            heap = self._heaps[which] = list(fresh.values())
            heapq.heapify(heap)

    def _forget_empty_root(self, node: PrefixNode) -> None:
        # A root is kept only while something hangs on it, so that tenants that came once leave nothing behind.
        if node.parent is None and node.leases == 0 and not node.children and not node.kept:
            self._roots.pop(node.salt, None)
