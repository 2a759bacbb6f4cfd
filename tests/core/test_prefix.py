"""PrefixTree against a dictionary of all cached beginnings, operation by operation."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from headrace.runtime.pages import PagePool
from headrace.runtime.prefix import PrefixLease, PrefixTree

Path = tuple[str, tuple[int, ...]]  # salt, all tokens from the first on


@dataclass
class Owner:
    """Somebody with a lease and references of his own, as a Req has."""

    salt: str
    tokens: tuple[int, ...]
    lease: PrefixLease
    depth: int
    condemned: bool = False
    pages: list[int] = field(default_factory=list)


class Oracle:
    """What a tree must answer, told by a dictionary from every cached beginning to its page and its stamp."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.size = rng.choice((1, 2, 3))
        self.pool = PagePool(rng.choice((4, 10, 40)))
        self.tree = PrefixTree(self.pool, self.size)
        self.cached: dict[Path, int] = {}
        self.stamps: dict[Path, int] = {}
        self.owners: list[Owner] = []
        self.clock = 0

    def path(self, owner: Owner, depth: int) -> Path:
        return owner.salt, owner.tokens[: depth * self.size]

    def leased(self, path: Path) -> bool:
        length = len(path[1])
        return any(
            not owner.condemned
            and owner.salt == path[0]
            and owner.depth * self.size >= length
            and owner.tokens[:length] == path[1]
            for owner in self.owners
        )

    def leaf(self, path: Path) -> bool:
        length = len(path[1])
        return not any(
            salt == path[0] and len(tokens) > length and tokens[:length] == path[1]
            for salt, tokens in self.cached
        )

    def idle_leaves(self) -> list[Path]:
        return [path for path in self.cached if self.leaf(path) and not self.leased(path)]

    # -- operations, each on both sides ------------------------------------------------------------------------

    def match(self) -> None:
        rng, size = self.rng, self.size
        salt = rng.choice("ab")
        tokens = tuple(rng.randrange(2) for _ in range(rng.randint(0, 6) * size + rng.randrange(size)))
        limit = rng.choice((len(tokens) // size, max(0, (len(tokens) - 1) // size)))
        best = 0
        while best < limit and (salt, tokens[: (best + 1) * size]) in self.cached:
            best += 1
        lease = self.tree.match(salt, list(tokens), limit)
        assert lease.depth == best
        pages = [self.cached[salt, tokens[: (index + 1) * size]] for index in range(best)]
        assert lease.pages() == pages
        for page in pages:
            self.pool.share(page, salt)
        self.owners.append(Owner(salt, tokens, lease, best, False, pages))

    def fork(self) -> None:
        if self.owners:
            parent = self.rng.choice(self.owners)
            depth = self.rng.randint(0, parent.depth)
            lease = self.tree.lease_upto(parent.lease, depth)
            for page in parent.pages[:depth]:
                self.pool.share(page, parent.salt)
            self.owners.append(
                Owner(
                    parent.salt,
                    parent.tokens,
                    lease,
                    depth,
                    parent.condemned and depth > 0,
                    parent.pages[:depth],
                )
            )

    def extend(self) -> None:
        able = [
            owner
            for owner in self.owners
            if not owner.condemned and (owner.depth + 1) * self.size <= len(owner.tokens)
        ]
        if not able or not self.pool.free_count:
            return
        owner = self.rng.choice(able)
        page = self.pool.take(owner.salt)
        owner.pages.append(page)
        path = self.path(owner, owner.depth + 1)
        key = path[1][-self.size :]
        adopted = self.tree.extend(owner.lease, key, page)
        assert adopted == (path not in self.cached)
        if adopted:
            self.cached[path] = page
            self.stamps[path] = 0
        owner.depth += 1
        assert owner.lease.depth == owner.depth

    def release(self) -> None:
        if self.owners:
            owner = self.owners.pop(self.rng.randrange(len(self.owners)))
            self.tree.release(owner.lease)
            self.part(owner)

    def part(self, owner: Owner) -> None:
        self.clock += 1
        if not owner.condemned and owner.depth:
            self.stamps[self.path(owner, owner.depth)] = self.clock
        for page in owner.pages:
            self.pool.drop(page)

    def evict(self) -> None:
        leaves = self.idle_leaves()
        assert self.tree.evict_one() == bool(leaves)
        if leaves:
            oldest = min(leaves, key=lambda path: self.stamps[path])
            del self.cached[oldest]
            stamp = self.stamps.pop(oldest)
            parent = (oldest[0], oldest[1][: -self.size])
            if parent in self.stamps:
                self.stamps[parent] = max(self.stamps[parent], stamp)

    def condemn(self) -> None:
        if not self.owners or self.rng.random() > 0.2:
            return
        owner = self.owners.pop(self.rng.randrange(len(self.owners)))
        self.tree.condemn(owner.lease)
        if owner.depth and not owner.condemned:
            top = self.path(owner, 1)
            gone = [path for path in self.cached if path[0] == top[0] and path[1][: self.size] == top[1]]
            for path in gone:
                del self.cached[path], self.stamps[path]
            for other in self.owners:
                if other.depth and self.path(other, 1) == top:
                    other.condemned = True
            owner.condemned = True
        self.part(owner)

    def clear(self) -> None:
        if self.rng.random() > 0.1:
            return
        before = len(self.cached)
        evicted = self.tree.clear()
        while leaves := self.idle_leaves():
            for path in leaves:
                del self.cached[path], self.stamps[path]
        assert evicted == before - len(self.cached)

    # -- comparison --------------------------------------------------------------------------------------------

    def compare(self) -> None:
        tree = self.tree
        tree.check([owner.lease for owner in self.owners])
        assert tree.cached_pages == len(self.cached)
        assert tree.idle_pages == sum(1 for path in self.cached if not self.leased(path))
        found: dict[Path, int] = {}
        for node in tree.nodes():
            tokens: tuple[int, ...] = ()
            step = node
            while step.parent is not None:
                tokens = step.key + tokens
                step = step.parent
            found[node.salt, tokens] = node.page
            assert tree.is_idle(node.page) == (not self.leased((node.salt, tokens)))
        assert found == self.cached
        counts: dict[int, int] = {}
        for page in [*self.cached.values(), *(page for owner in self.owners for page in owner.pages)]:
            counts[page] = counts.get(page, 0) + 1
        self.pool.check(counts)
        assert len(tree._heaps[False]) <= 2 * len(self.cached) + 65, "stale entries pile up"


@pytest.mark.parametrize("seed", range(60))
def test_the_tree_answers_like_a_dictionary_of_all_beginnings(seed: int) -> None:
    oracle = Oracle(random.Random(seed))
    verbs = (
        oracle.match,
        oracle.extend,
        oracle.extend,
        oracle.extend,
        oracle.release,
        oracle.fork,
        oracle.evict,
        oracle.condemn,
        oracle.clear,
    )
    for _ in range(250):
        oracle.rng.choice(verbs)()
        oracle.compare()
    for owner in oracle.owners:
        oracle.tree.release(owner.lease)
        for page in owner.pages:
            oracle.pool.drop(page)
    oracle.tree.clear()
    assert oracle.pool.free_count == oracle.pool.count
    assert not oracle.tree._roots, "a tenant left something behind"


def test_a_page_at_the_limit_is_not_matched() -> None:
    """ENG-07: prefixes of k pages and one token less and more."""
    size = 4
    for pages in range(1, 4):
        pool = PagePool(8)
        tree = PrefixTree(pool, size)
        text = list(range(pages * size))
        lease = tree.match("a", text, 0)
        for index in range(pages):
            tree.extend(lease, tuple(text[index * size : (index + 1) * size]), pool.take("a"))
        for length, want in ((pages * size - 1, pages - 1), (pages * size, pages), (pages * size + 1, pages)):
            prompt = [*text, 99][:length]
            assert tree.match("a", prompt, length // size).depth == want
        assert tree.match("b", text, pages).depth == 0, "another tenant sees none of it"


def test_a_lease_ends_once() -> None:
    tree = PrefixTree(PagePool(1), 1)
    lease = tree.match("a", [1], 1)
    tree.release(lease)
    with pytest.raises(AssertionError, match="ends once"):
        tree.release(lease)


def test_tenants_that_came_once_leave_nothing() -> None:
    tree = PrefixTree(PagePool(1), 1)
    for number in range(100):
        tree.release(tree.match(f"tenant {number}", [1, 2], 2))
    assert not tree._roots and not any(tree._heaps.values())
