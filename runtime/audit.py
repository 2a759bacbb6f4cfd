"""What must hold between any two verbs of the Scheduler, said once. Reads everything, changes nothing."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from headrace.runtime.plan import StepPlan
from headrace.runtime.request import Phase

if TYPE_CHECKING:
    from headrace.runtime.scheduler import Scheduler


def audit(scheduler: Scheduler, flight: Sequence[StepPlan], sources: Mapping[int, int]) -> None:
    """Raise AssertionError if any invariant of requests, pages, slots, tree and flight is broken.

    flight: plans launched and not retired. sources: how many copies hold each page, as the scheduler counts."""
    pool, size = scheduler.pool, scheduler.page_size
    phases = {
        Phase.WAITING: scheduler.waiting,
        Phase.PREFILL: scheduler.running,
        Phase.DECODE: scheduler.running,
        Phase.PAUSED: scheduler.paused,
    }
    owners: dict[int, int] = {}
    mapped: dict[int, int] = {}  # page tables and tree; the hold of a copy stops a free, not a write
    seen: set[int] = set()
    held_slots: set[int] = set()
    flown: dict[int, int] = {}
    for plan in flight:
        assert plan.prefill_tokens == sum(len(row.ids or ()) for row in plan.prefill)
        for row in plan.rows:
            flown[row.req_id] = flown.get(row.req_id, 0) + 1
        for copy in plan.copies:
            owners[copy.source] = owners.get(copy.source, 0) + 1
    drafts = scheduler.drafts.held
    everyone = [*scheduler.reqs(), *drafts.values()]
    scheduler.drafts.check()
    for req in everyone:
        req.check()
        assert req.id not in seen, "a request is in two containers"
        seen.add(req.id)
        home = drafts if req.id in drafts else phases[req.phase]
        assert home.get(req.id) is req, "phase and container disagree"
        assert req.inflight == flown.pop(req.id, 0), "inflight counts launched steps"
        assert req.inflight > 0 or not (req.finish or req.retracting or req.yielding or req.changing), (
            "a mark was not settled"
        )
        assert (req.changing is not None) <= (req.id in scheduler._changing), "a change is not looked for"
        assert req.inflight > 0 or req.pausing is (req.phase is Phase.PAUSED), "a pause was not settled"
        assert req.pausing or req.phase is not Phase.PAUSED
        assert req.finish is not None or not req.spoilt, "who met a NaN has ended"
        if req.slot is not None:
            assert req.slot not in held_slots, "two requests share a slot"
            held_slots.add(req.slot)
        for page in req.pages:
            assert pool.salt(page) == req.salt, "a page of another tenant is mapped"
            owners[page] = owners.get(page, 0) + 1
            mapped[page] = mapped.get(page, 0) + 1
        if req.copy_from is not None:
            owners[req.copy_from] = owners.get(req.copy_from, 0) + 1
        assert len(set(req.pages)) == len(req.pages), "a page is mapped twice"
        assert req.computed_len <= len(req.pages) * size
        if req.phase is Phase.PAUSED or req.phase is Phase.WAITING:
            assert req.total_len == len(req.tokens)
        elif not req.spoilt:
            # Pages reach as far as the known tokens plus the ones in flight, and no further.
            assert len(req.pages) <= -(-max(req.total_len, len(req.tokens)) // size)
        if req.lease is not None:
            assert not req.lease.released and req.lease.node.salt == req.salt
            assert req.lease.depth * size <= max(req.landed_len, req.computed_len)
    assert not flown, "a launched step holds a request that is gone"
    holds: dict[int, int] = {}
    for page in itertools.chain(
        (req.copy_from for req in everyone if req.copy_from is not None),
        (copy.source for plan in flight for copy in plan.copies),
    ):
        holds[page] = holds.get(page, 0) + 1
    assert holds == sources, "a copy's hold is lost or counted twice"
    cached: set[int] = set()
    for node in scheduler.tree.nodes():
        owners[node.page] = owners.get(node.page, 0) + 1
        assert node.page not in cached, "a page is in the tree twice"
        cached.add(node.page)
    for page in scheduler.remnants.pages():
        owners[page] = owners.get(page, 0) + 1
        assert page not in cached and page not in mapped, "a remnant has another owner than copies"
    for req in everyone:
        # Writes go to computed_len and beyond; a page in the tree must lie wholly before that.
        writable = req.pages[req.computed_len // size :]
        for page in writable:
            assert page not in cached and mapped[page] == 1, "a writable page has another owner"
    pool.check(owners)
    scheduler.slots.check(held_slots)
    scheduler.gallery.check(everyone)
    leases = [req.lease for req in everyone if req.lease is not None]
    scheduler.tree.check([*leases, *scheduler.pins.leases()])
    scheduler.pins.check()
    assert scheduler._changing <= seen, "a change waits for a request that is gone"
    for req_id, req in scheduler._regrants.items():
        assert scheduler.running.get(req_id) is req and req.phase is Phase.PREFILL and req.inflight == 0
    assert len(scheduler.running) <= scheduler.slots.count
    assert scheduler._yielding == sum(req.yielding for req in scheduler.running.values())
    scheduler.waiting.check()
    scheduler.shares.check(scheduler.reqs())
