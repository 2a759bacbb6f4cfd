"""The store of responses and the lanes of a connection, without any protocol."""

from __future__ import annotations

import random

import pytest
from msgspec import Raw

from headrace.runtime.interface import Message, Tenant
from headrace.server.conversation import ROW_BYTES, TURN_BYTES, Conversations, Turn
from headrace.server.session import LaneLimits, Lanes, WaitingBudget

ALICE, BOB = Tenant("alice", "a"), Tenant("bob", "b")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def said(*texts: str) -> tuple[Message, ...]:
    return tuple(Message("user", text) for text in texts)


def put(store: Conversations, name: str, parent: Turn | None = None, tenant: Tenant = ALICE) -> Turn:
    """Store a response as a face does: the turn is held by the table alone afterwards."""
    turn = store.add_turn(parent, said(name))
    store.put(tenant, name, f"response {name}".encode(), turn)
    store.release(turn)
    return turn


def test_history_is_the_whole_chain_in_order() -> None:
    store = Conversations()
    a = put(store, "a")
    b = put(store, "b", a)
    c = put(store, "c", b)
    fork = put(store, "fork", a)
    assert [m.content for m in c.history()] == ["a", "b", "c"]
    assert [m.content for m in fork.history()] == ["a", "fork"]
    found = store.get(ALICE, "b")
    assert found is not None and found.response == b"response b"
    store.check()


def test_rows_belong_to_their_tenant() -> None:
    store = Conversations()
    put(store, "a")
    put(store, "a", tenant=BOB)
    assert store.get(BOB, "a") is not None
    assert not store.delete(Tenant("carol", "c"), "a")
    assert store.delete(BOB, "a") and store.get(BOB, "a") is None and store.get(ALICE, "a") is not None


def test_a_deleted_parent_lives_as_long_as_its_children() -> None:
    store = Conversations()
    a = put(store, "a")
    put(store, "b", a)
    both = store.bytes
    assert store.delete(ALICE, "a") and not store.delete(ALICE, "a")
    assert store.bytes == both - ROW_BYTES - len("response a"), "b still needs the text of a"
    found = store.get(ALICE, "b")
    assert found is not None and [m.content for m in found.turn.history()] == ["a", "b"]
    store.delete(ALICE, "b")
    assert store.bytes == 0


@pytest.mark.parametrize("limit", [3, 4, 5])
def test_the_oldest_rows_go_first_when_there_are_too_many(limit: int) -> None:
    store = Conversations(count_limit=limit)
    for number in range(6):
        put(store, str(number))
    assert len(store) == limit
    assert [store.get(ALICE, str(n)) is not None for n in range(6)] == [False] * (6 - limit) + [True] * limit


def test_bytes_are_bounded_and_shared_turns_count_once() -> None:
    one = TURN_BYTES + 64 + 4 + ROW_BYTES + len("response a")
    store = Conversations(bytes_limit=3 * one)
    put(store, "a")
    put(store, "b")
    put(store, "c")
    assert len(store) == 3 and store.bytes == 3 * one
    put(store, "d")
    assert len(store) == 3 and store.get(ALICE, "a") is None
    chain = Conversations(bytes_limit=100 * one)
    turn = put(chain, "0")
    for number in range(1, 10):
        turn = put(chain, str(number), turn)
    assert chain.bytes == 10 * one


def test_a_row_is_charged_what_it_holds() -> None:
    store = Conversations(bytes_limit=1 << 20)
    turn = store.add_turn(None, said("a"))
    for number in range(300):
        store.put(ALICE, str(number), b"x" * 60_000, turn)
    held = sum(len(row.response) for row in store._rows.values())
    assert 0 < held < store.kept <= 1 << 20
    before = store.kept
    store.put(ALICE, "items", b"", turn, (Raw(b"x" * 100),), b"y" * 50)
    assert store.kept - before - ROW_BYTES in (214, 214 - 60_000 - ROW_BYTES), (
        "its items and its tape count too"
    )
    store.delete(ALICE, "items")
    store.check()
    for number in range(300):
        store.delete(ALICE, str(number))
    assert store.kept == 0 and store.bytes == turn.bytes
    store.release(turn)
    assert store.bytes == 0


def test_the_items_and_the_tape_of_a_row_count_too() -> None:
    store = Conversations()
    turn = store.add_turn(None, said("a"))
    store.put(ALICE, "r", b"z" * 10, turn, (Raw(b"x" * 100),), b"y" * 50)
    assert store.kept == turn.bytes + ROW_BYTES + 10 + 100 + 64 + 50
    store.check()
    store.delete(ALICE, "r")
    store.release(turn)
    assert store.bytes == 0


def test_what_only_connections_hold_pushes_no_row_out() -> None:
    store = Conversations(bytes_limit=100_000)
    put(store, "a")
    put(store, "b", tenant=BOB)
    lanes = [store.add_turn(None, said("x" * 10_000)) for _ in range(20)]
    assert store.bytes > 800_000 and len(store) == 2
    put(store, "c", tenant=BOB)
    assert len(store) == 3
    # Stored, a turn counts with everything below it; not stored any more, none of it does.
    before = store.kept
    child = put(store, "d", store.add_turn(lanes[0], said("y")))
    assert store.kept > before + 40_000 and child.parent is not None
    store.release(child.parent)
    store.check()
    assert store.delete(ALICE, "d") and store.kept == before
    for turn in lanes:
        store.release(turn)
    store.check()


@pytest.mark.parametrize("limits", [{"bytes_limit": 50_000}, {"count_limit": 20}])
def test_the_tenant_that_keeps_most_makes_room(limits: dict[str, int]) -> None:
    store = Conversations(**limits)
    for number in range(5):
        put(store, f"old {number}", tenant=BOB)
    for number in range(200):
        put(store, f"new {number}")
        store.check()
    assert all(store.get(BOB, f"old {number}") is not None for number in range(5))
    assert store.get(ALICE, "new 199") is not None and store.get(ALICE, "new 0") is None


def test_what_is_larger_than_the_whole_budget_leaves_the_table_empty() -> None:
    store = Conversations(bytes_limit=10_000)
    put(store, "a")
    turn = store.add_turn(None, said("x" * 10_000))
    store.put(ALICE, "big", b"r", turn)
    assert len(store) == 0 and store.bytes == turn.bytes, "only its maker still holds it"
    store.release(turn)
    assert store.bytes == 0


@pytest.mark.parametrize(("age", "there"), [(99.0, True), (100.0, False), (101.0, False)])
def test_rows_expire(age: float, there: bool) -> None:
    clock = Clock()
    store = Conversations(age_limit=100.0, clock=clock)
    put(store, "a")
    clock.now = age
    assert (store.get(ALICE, "a") is not None) == there
    assert (store.bytes == 0) == (not there)


def test_a_very_long_chain_is_freed_without_recursion() -> None:
    store = Conversations(count_limit=1)
    turn = put(store, "0")
    for number in range(1, 50_000):
        turn = put(store, str(number), turn)
    assert len(turn.history()) == 50_000
    store.delete(ALICE, "49999")
    assert store.bytes == 0


def test_misuse_is_noticed() -> None:
    store = Conversations()
    turn = store.add_turn(None, said("a"))
    store.release(turn)
    with pytest.raises(AssertionError):
        store.release(turn)
    with pytest.raises(AssertionError):
        store.hold(turn)


def test_random_lives_end_with_nothing_held() -> None:
    """Adds, forks, holds, deletes, expiry and eviction in any order; the count of bytes is exact at every step."""
    for seed in range(200):
        rng = random.Random(seed)
        clock = Clock()
        store = Conversations(
            count_limit=rng.randint(1, 8), bytes_limit=rng.randint(1500, 20_000), age_limit=50.0, clock=clock
        )
        held: list[Turn] = []
        names: list[str] = []
        for step in range(60):
            clock.now += rng.choice([0, 0, 1, 10])
            roll = rng.random()
            row = store.get(ALICE, rng.choice(names)) if names else None
            if roll < 0.5:
                parent = row.turn if row is not None else rng.choice(held) if held and roll < 0.2 else None
                if parent is not None:
                    store.hold(parent)
                turn = store.add_turn(parent, said("x" * rng.randint(0, 300)))
                if rng.random() < 0.7:
                    names.append(f"r{step}")
                    store.put(ALICE, names[-1], b"r" * rng.randint(0, 300), turn)
                if parent is not None:
                    store.release(parent)
                if rng.random() < 0.3:
                    held.append(turn)
                else:
                    store.release(turn)
            elif roll < 0.6 and names:
                store.delete(ALICE, rng.choice(names))
            elif roll < 0.8 and held:
                store.release(held.pop(rng.randrange(len(held))))
            store.check()
            assert len(store) <= store.count_limit
            reachable: dict[int, Turn] = {}
            for turn in [*held, *(r.turn for r in store._rows.values())]:
                at: Turn | None = turn
                while at is not None and id(at) not in reachable:
                    reachable[id(at)] = at
                    at = at.parent
            rows = sum(row.bytes for row in store._rows.values())
            assert store.bytes == rows + sum(turn.bytes for turn in reachable.values()), (
                f"seed {seed} step {step}"
            )
        for turn in held:
            store.release(turn)
        for name in names:
            store.delete(ALICE, name)
        assert store.bytes == 0 and len(store) == 0, f"seed {seed}"


# -- lanes -----------------------------------------------------------------------------------------------------


def test_lanes_by_random_scripts() -> None:
    """Whatever comes: FIFO in a lane, one job a lane, limits kept, nothing startable left unstarted."""
    for seed in range(300):
        rng = random.Random(seed)
        limits = LaneLimits(
            in_flight=rng.randint(1, 3), waiting=rng.randint(0, 5), waiting_bytes=rng.randint(10, 60), named=3
        )
        budget = WaitingBudget(rng.choice([15, 40, 10_000]))
        lanes: Lanes[int, int] = Lanes(limits, budget)
        running: dict[str | None, int] = {}
        accepted: dict[str | None, list[int]] = {}
        started: dict[str | None, list[int]] = {}
        for number in range(60):
            if rng.random() < 0.6:
                lane = rng.choice([None, "a", "b", "c", "d"])
                known = lane is None or lane in lanes._named or len(lanes._named) < 3
                assert lanes.name(lane) == known
                if known:
                    startable = lane not in running and len(running) < limits.in_flight
                    waiting = sum(len(accepted[x]) - len(started.get(x, [])) for x in accepted)
                    took = lanes.wait(lane, number, rng.randint(1, 20))
                    assert took or not startable, "what can start at once is never refused"
                    assert not took or startable or waiting < limits.waiting
                    if took:
                        accepted.setdefault(lane, []).append(number)
            elif running:
                lane = rng.choice(list(running))
                lanes.leave(lane)
                del running[lane]
            while (ready := lanes.next()) is not None:
                lane, job = ready
                assert lane not in running
                lanes.start(lane, job)
                running[lane] = job
                started.setdefault(lane, []).append(job)
            assert len(running) <= limits.in_flight
            assert budget.used == lanes._waiting_bytes <= min(budget.limit, limits.waiting_bytes + 20)
            assert dict(lanes._running) == running
            assert sorted(lanes.jobs()) == sorted(running.values())
            for lane in started:
                assert started[lane] == accepted[lane][: len(started[lane])], (
                    f"seed {seed}: first in, first out"
                )
            for waiting_request in lanes._waiting:
                blocked = waiting_request.lane in running or len(running) == limits.in_flight
                assert blocked, f"seed {seed}: startable work waits"
        left = lanes.take_waiting()
        assert len(left) == sum(len(accepted[x]) - len(started.get(x, [])) for x in accepted)
        assert lanes._waiting_bytes == 0 == budget.used and lanes.idle == (not running)


@pytest.mark.parametrize(("waiting", "refused"), [(63, False), (64, True), (65, True)])
def test_the_waiting_limit_to_the_number(waiting: int, refused: bool) -> None:
    lanes: Lanes[int, int] = Lanes(LaneLimits(), WaitingBudget(1 << 20))
    assert lanes.wait("a", 0, 1)
    assert lanes.next() == ("a", 0)
    lanes.start("a", 0)
    for number in range(min(waiting, 64)):
        assert lanes.wait("a", number, 1)
    assert lanes.wait("a", 99, 1) != refused


@pytest.mark.parametrize(("running", "starts"), [(15, True), (16, False)])
def test_the_in_flight_limit_to_the_number(running: int, starts: bool) -> None:
    lanes: Lanes[int, int] = Lanes(LaneLimits(), WaitingBudget(1 << 20))
    for number in range(running):
        lanes.start(f"lane{number}", number)
    assert lanes.wait("new", 99, 1)
    assert (lanes.next() is not None) == starts


@pytest.mark.parametrize(("named", "room"), [(31, True), (32, False)])
def test_the_named_lane_limit_to_the_number(named: int, room: bool) -> None:
    lanes: Lanes[int, int] = Lanes(LaneLimits(), WaitingBudget(1 << 20))
    for number in range(named):
        assert lanes.name(f"lane{number}")
    assert lanes.name("new") == room and lanes.name("lane0") and lanes.name(None)


@pytest.mark.parametrize(("size", "fits"), [(99, True), (100, True), (101, False)])
def test_the_bytes_of_all_connections_together(size: int, fits: bool) -> None:
    budget = WaitingBudget(200)
    lanes: list[Lanes[int, int]] = [Lanes(LaneLimits(in_flight=1), budget) for _ in range(2)]
    for number, one in enumerate(lanes):
        assert one.wait(None, 0, 10_000), "what starts at once waits for nobody"
        assert one.next() == (None, 0)
        one.start(None, number)
    assert lanes[0].wait(None, 1, 100)
    assert lanes[1].wait(None, 1, size) == fits
    assert lanes[1].wait("free lane", 2, 10_000) is False, "the one response in flight is taken"
    lanes[0].take_waiting()
    lanes[1].take_waiting()
    assert budget.used == 0
