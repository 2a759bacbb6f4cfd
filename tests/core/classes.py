"""Classes, owners and promises in the simulation: what a seed draws of them, and who may be admitted before whom.

Draws from a generator of its own, so that what else a seed does stays as it was. Watches the line from outside: it
is told of every admission at the moment it happens.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from headrace.runtime.claim import Claim, Promise, Rank, Targets

GATES = (
    "yield: its pages were kept",
    "yield: its pages were taken meanwhile",
    "yield: after chunks of its prompt alone",
    "yield: ended while it made way",
    "yield: paused while it made way",
    "yield: for an owner with fewer slots",
    "abort: making way",
    "a lower rank lost pages to a higher one",
    "a rank was overdue",
    "a promise went first",
    "a promise had time, and somebody else went first",
    "a promise took the last slot",
    "a promise held cached pages while it waited",
    "an owner's first request passed a line",
    "rows were limited",
)


class Order:
    """Who was admitted before whom, in one world."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.rng = rng = random.Random(world.seed * 7919 + 1)
        self.on = rng.random() < 0.6
        self.owners = rng.choice((1, 2, 3))
        self.ranks = rng.choice(((1,), (0, 1), (0, 2), (0, 1, 2)))
        self.promises = rng.choice((0.0, 0.0, 0.2, 0.6))
        self.patience = rng.choice((1, 2, 3, 16))
        self.limits = rng.random() < 0.2
        self.hurry = True
        if self.on and rng.random() < 0.8:
            # Few slots and many pages: then it is slots that are fought for.
            found = world.drawn
            found.slots, found.pages = rng.randint(1, 2), max(found.pages, 16)
            found.requests, found.gap = found.requests + 4, min(found.gap, 5)
        self.streak = dict.fromkeys(
            Rank, 0
        )  # unpromised admissions of higher ranks while one of this rank waited
        self.passed: Counter[tuple[int, str]] = Counter()  # (request, owner): fresh ones that went before it
        self.firsts: set[int] = set()  # first requests of their owners
        self.known: set[str] = set()
        self.let_in: set[int] = set()
        self.served: set[str] = set()  # owners of whom anybody was let in
        self.tempted: Any = None  # whom the next fault meets
        self.kept: dict[
            int, tuple[int, int]
        ] = {}  # who made way: what was computed, and its retractions then
        self.marked: dict[int, int] = {}  # who was told to make way: its retractions then
        self.going: set[int] = set()  # who was told so before this plan

    def watch(self, scheduler: Any) -> None:
        line, seen = scheduler.waiting, self.world.seen
        admit, rejoin = line.admit, line.rejoin

        def admitted(req: Any) -> None:
            self._admitted(scheduler, line, req)
            admit(req)
            assert req.rank <= req.claim.targets.rank, "nobody is made less urgent"

        def rejoined(req: Any) -> None:
            rejoin(req)
            before = self.marked.pop(req.id, None)
            if before is not None and before == req.retractions:
                assert req.pages, "who makes way keeps its pages"
                self.kept[req.id] = req.computed_len, req.retractions
                seen["yield: after chunks of its prompt alone"] += req.output_len == 0

        line.admit, line.rejoin = admitted, rejoined

    def claim(self) -> Claim:
        if not self.on:
            return Claim()
        rng = self.rng
        owner = "xyz"[rng.randrange(self.owners)]
        return Claim(owner, rng.choice((1.0, 1.0, 2.0)), Targets(Rank(rng.choice(self.ranks))))

    def promise(self) -> Promise | None:
        if not self.on or self.rng.random() >= self.promises:
            return None
        return Promise(self.world.now + self.rng.uniform(0.0, 100.0), 0.0, 0.0)

    def added(self, req: Any) -> None:
        owner = req.claim.owner
        if owner not in self.known:
            self.known.add(owner)
            self.firsts.add(req.id)
        if req.promise is not None and req.pages:
            self.world.seen["a promise held cached pages while it waited"] += 1

    def limit(self) -> dict[str, Any]:
        """What the loop says for the next plan."""
        running = self.world.scheduler.running.values()
        self.going = {req.id for req in running if req.yielding}
        if not self.on:
            return {}
        self.hurry = self.rng.random() < 0.5
        most = None
        if self.limits and self.rng.random() < 0.5:
            most = self.rng.randint(1, self.world.drawn.slots)
            self.world.seen["rows were limited"] += 1
        return {"hurry": self.hurry, "most_rows": most}

    def planned(self, scheduler: Any, plan: Any) -> None:
        rows = () if plan is None else plan.rows
        assert not any(row.req_id in self.going for row in rows), "who makes way has no row"
        for req in scheduler.running.values():
            if req.yielding and req.id not in self.marked:
                self.marked[req.id] = req.retractions
                lower = any(other.rank < req.rank for other in scheduler.waiting.values())
                self.world.seen["yield: for an owner with fewer slots"] += not lower
                if self.rng.random() < 0.4:
                    self.tempted = req
                    self.world._at(
                        self.world.now,
                        self.rng.choice((self.world._do_cancel, self.world._do_cancel, self.world._do_pause)),
                    )

    def taken_back(self, scheduler: Any, victim: Any) -> None:
        higher = any(req.rank < victim.rank for req in scheduler.waiting.values())
        self.world.seen["a lower rank lost pages to a higher one"] += higher

    def settled(self, scheduler: Any) -> None:
        seen = self.world.seen
        present = {req.rank for req in scheduler.waiting.values()}
        self.streak = {rank: count if rank in present else 0 for rank, count in self.streak.items()}
        for req_id in list(self.marked):
            req = self.world.stories[req_id].req
            if req.finish is not None:
                seen["yield: ended while it made way"] += 1
                del self.marked[req_id]
            elif req.pausing:
                seen["yield: paused while it made way"] += 1
                del self.marked[req_id]
            elif req.slot is None:
                del self.marked[req_id]

    def granted(self, req: Any, start: int) -> None:
        """`req` has its first row since it was let in again, at token `start`."""
        if req.id not in self.kept:
            return
        computed, retractions = self.kept.pop(req.id)
        if req.retractions == retractions:
            assert start == computed, f"request {req.id} made way at {computed}, and went on at {start}"
            self.world.seen["yield: its pages were kept"] += 1
        else:
            self.world.seen["yield: its pages were taken meanwhile"] += 1

    def _admitted(self, scheduler: Any, line: Any, req: Any) -> None:
        seen, stories = self.world.seen, self.world.stories
        waiting = [other for other in line.values() if other is not req]
        promised = [other for other in waiting if other.promise is not None]
        if req.promise is None:
            assert scheduler.slots.free_count > len(promised), "a promise lost its slot"
            assert not (self.hurry and promised), "a promise had no time to lose, and another went first"
            seen["a promise had time, and somebody else went first"] += bool(promised)
        elif self.hurry:
            assert all(req.promise.due <= other.promise.due for other in promised), "not the earliest promise"
            seen["a promise went first"] += any(
                other.rank < req.rank or other.id < req.id for other in waiting
            )
        else:
            seen["a promise took the last slot"] += bool(waiting) and scheduler.slots.free_count == 1
        by_rank = {rank: [other for other in waiting if other.rank is rank] for rank in Rank}
        for rank, others in by_rank.items():
            if rank is req.rank or not others:
                self.streak[rank] = 0
            elif rank > req.rank and req.promise is None:
                self.streak[rank] += 1
                assert self.streak[rank] <= self.patience, f"rank {rank.name} is starved"
        if req.promise is None and any(by_rank[rank] for rank in Rank if rank < req.rank):
            seen["a rank was overdue"] += 1
        again = req.id in self.let_in
        self.let_in.add(req.id)
        self.served.add(req.claim.owner)
        if again or stories[req.id].slept or req.promise is not None:
            return
        for other in waiting:
            if (
                other.rank is not req.rank
                or other.id in self.let_in
                or stories[other.id].slept
                or other.promise is not None
            ):
                continue
            if other.claim.owner == req.claim.owner:
                assert other.id > req.id, f"request {req.id} overtook {other.id} of the same owner"
            elif other.id in self.firsts and other.claim.owner not in self.served:
                self.passed[other.id, req.claim.owner] += 1
                assert self.passed[other.id, req.claim.owner] <= 1, (
                    f"the first request of an owner, {other.id}, waits"
                )
        if req.id in self.firsts and any(other.id < req.id for other in by_rank[req.rank]):
            seen["an owner's first request passed a line"] += 1
