"""PagePool and SlotPool against counting by hand."""

from __future__ import annotations

import random

import pytest

from headrace.runtime.pages import PagePool, SlotPool


def test_pages_come_lowest_first_and_back_when_the_last_owner_drops() -> None:
    pool = PagePool(3)
    assert [pool.take("a"), pool.take("a"), pool.take("b")] == [0, 1, 2]
    pool.share(1, "a")
    pool.drop(1)
    assert pool.free_count == 0 and pool.refs(1) == 1 and pool.salt(1) == "a"
    pool.drop(1)
    assert pool.free_count == 1 and pool.refs(1) == 0 and pool.salt(1) is None
    pool.drop(0)
    assert pool.take("b") == 0, "the lowest free page comes first"
    assert pool.used_count == 2
    pool.check({0: 1, 2: 1})


def test_our_mistakes_with_pages_are_caught() -> None:
    pool = PagePool(1)
    page = pool.take("a")
    with pytest.raises(AssertionError, match="without a free page"):
        pool.take("a")
    with pytest.raises(AssertionError, match="another tenant"):
        pool.share(page, "b")
    pool.drop(page)
    with pytest.raises(AssertionError, match="more often than it was taken"):
        pool.drop(page)
    with pytest.raises(AssertionError, match="is free"):
        pool.share(page, "a")
    pool.take("b")
    with pytest.raises(AssertionError, match="1 references, 2 owners"):
        pool.check({0: 2})


@pytest.mark.parametrize("seed", range(20))
def test_random_owners_add_up(seed: int) -> None:
    rng = random.Random(seed)
    pool = PagePool(rng.randint(1, 12))
    owners: list[tuple[int, str]] = []
    for _ in range(400):
        kind = rng.random()
        if kind < 0.4 and pool.free_count:
            salt = rng.choice("ab")
            free = set(range(pool.count)) - {page for page, _ in owners}
            page = pool.take(salt)
            assert page == min(free)
            owners.append((page, salt))
        elif kind < 0.6 and owners:
            page, salt = rng.choice(owners)
            pool.share(page, salt)
            owners.append((page, salt))
        elif owners:
            pool.drop(owners.pop(rng.randrange(len(owners)))[0])
        counts = {page: sum(1 for other, _ in owners if other == page) for page, _ in owners}
        pool.check(counts)
        assert pool.free_count == pool.count - len(counts)
        assert all(pool.salt(page) == salt for page, salt in owners)


def test_slots_come_lowest_first_and_go_back_once() -> None:
    slots = SlotPool(3)
    assert [slots.take(), slots.take(), slots.take()] == [0, 1, 2]
    with pytest.raises(AssertionError, match="without a free slot"):
        slots.take()
    slots.give_back(1)
    slots.give_back(0)
    slots.check({2})
    assert slots.free_count == 2 and slots.take() == 0
    with pytest.raises(AssertionError, match="given back twice"):
        slots.give_back(1)
    with pytest.raises(AssertionError, match="given back twice"):
        slots.give_back(3)
    with pytest.raises(AssertionError, match="a slot is lost"):
        slots.check({2})
    with pytest.raises(AssertionError, match="a held slot is free"):
        slots.check({0, 1, 2})
