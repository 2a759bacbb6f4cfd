"""What can be promised, and whether promises have time left. Knows requests, numbers and a clock it is given.

A promise is made only if it can be kept beside all that were made before: with every prompt at the slowest that the
pace allows, in order of due times, behind the steps in flight, and with a slot and pages for each. Whoever was
promised nothing gets what is left: while promises have slack, ranks and shares decide; when it is used up, promises
go first. A part of the time (1 - SHARE) is never promised, so that the others always get some.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.runtime.claim import Promise, Rank
from headrace.runtime.line import slack
from headrace.runtime.pace import Pace
from headrace.runtime.refusal import Refusal
from headrace.runtime.request import Phase, Req

if TYPE_CHECKING:
    from headrace.runtime.scheduler import Scheduler

SHARE = 0.9  # of the time until a first token is due: so much of it may be promised
HALF = 0.5  # of a deadline is for the answer behind its first token, if more is not needed
PARAM = "x_latency"


@dataclass(frozen=True, slots=True)
class Allowance:
    """What the next plan may do; the arguments of `Scheduler.plan`."""

    budget: int | None
    most_rows: int | None
    hurry: bool


class Foresight:
    """Looks ahead for one scheduler. pace: how fast its engine is; None: nothing can be foretold, so nothing is
    promised, and targets only say who is more urgent. depth: steps that may be in flight. context: tokens of the
    longest request; None: what fits into the pages."""

    def __init__(
        self, scheduler: Scheduler, pace: Pace | None, depth: int, context: int | None = None
    ) -> None:
        self.scheduler = scheduler
        self.pace = pace
        self.depth = depth
        self.context = scheduler.max_tokens if context is None else context

    def allowance(self, now: float) -> Allowance:
        """For the next plan."""
        pace, scheduler = self.pace, self.scheduler
        if pace is None:
            return Allowance(None, None, True)
        hurry, least = False, 0
        if scheduler.promises:
            # A step that nobody reads may be long, but not while a promise may come due behind it.
            least = 1
            # What is decided now lands after the steps in flight, the next decision a step later, and a first token
            # comes at the end of its whole step. The pace that others were promised may not be in force then.
            worst = pace.worst(scheduler.slots.count, self.context)
            hurry = slack(self._promised(), now) <= (self.depth + 2) * worst
        prospect = scheduler.prospect(hurry)
        if prospect is None:
            return Allowance(None, None, hurry)
        most = None if prospect.itl is None else pace.most_rows(prospect.itl)
        return Allowance(
            pace.allow(max(least, prospect.rows), prospect.start, prospect.queued, prospect.itl), most, hurry
        )

    def promise(self, req: Req, opened: float, now: float, ahead: float = 0.0) -> Promise | None:
        """What `req`, not added yet, is promised by its targets, counted from `opened`. None if it wants nothing of
        the kind. ahead: seconds until the steps in flight have landed. Raises Refusal if it cannot be kept."""
        pace, targets = self.pace, req.claim.targets
        if pace is None or not targets.promised:
            return None
        own, answer = self._own_pace(req)
        self._check_pace(own)
        if targets.ttft is None and targets.deadline is None:
            return Promise(math.inf, 0.0, 0.0, own)
        due = math.inf if targets.ttft is None else opened + targets.ttft
        if targets.deadline is not None:
            due = min(due, opened + targets.deadline - answer)
        itl = self._tightest(own)
        rows = self._rows(itl)
        cached = self._cached(req)
        cost = self._cost(rows, itl, cached, len(req.tokens))
        made = Promise(due, *cost, own)
        whole = targets.deadline is not None
        # A reader that was promised shorter steps makes everybody's prompt slower.
        others = [
            (other, self._renewed(other, rows, itl))
            for other in self._promised()
            if other.promise is not None
        ]
        worst = pace.worst(self.scheduler.slots.count, self.context)
        begin = now + ahead + worst
        before = self._landings(others, begin, worst, req.rank)
        after = self._landings([*others, (req, made)], begin, worst, req.rank)
        mine = after[req.id]
        expected = min(mine, now + ahead + self._expected(req, cached, itl)) - opened
        if (mine - now) > SHARE * (due - now):
            self._refuse(expected, mine - now - SHARE * (due - now), whole)
        for other, promise in others:
            if after[other.id] > promise.due >= before[other.id]:
                self._refuse(expected, after[other.id] - promise.due, whole)
        if not self._has_pages(req, cached, due - now, rows):
            self._refuse(max(expected, due - opened), due - now, whole)
        for other, promise in others:
            other.promise = promise
        return Promise(due, *cost, own, expected)

    # -- parts -------------------------------------------------------------------------------------------------

    def _promised(self) -> list[Req]:
        """Who still waits for the first token that it was promised."""
        scheduler = self.scheduler
        running = [
            req
            for req in scheduler.running.values()
            if req.promise is not None and req.promise.dated and _reads(req)
        ]
        return [*running, *scheduler.waiting.promised.values()]

    def _cached(self, req: Req) -> int:
        """How many leading tokens of `req` the cache holds now."""
        scheduler = self.scheduler
        if not scheduler.prefix_cache:
            return 0
        size, tree = scheduler.page_size, scheduler.tree
        lease = tree.match(req.salt, req.keys(0, len(req.tokens)), req.reusable_len // size)
        found = lease.depth * size
        tree.release(lease)
        return found

    def _tightest(self, itl: float | None = None) -> float | None:
        """The shortest time between tokens that anybody here was promised, or `itl`."""
        promises = [req.promise for req in self.scheduler.reqs() if req.promise is not None]
        wanted = [promise.itl for promise in promises if promise.itl is not None]
        return min(wanted if itl is None else [*wanted, itl], default=None)

    def _own_pace(self, req: Req) -> tuple[float | None, float]:
        """The time between its tokens that `req` must be promised (None: none), and what its whole answer takes
        then after the first token. A deadline needs a pace where nothing else bounds the steps enough."""
        assert self.pace is not None
        own, deadline = req.claim.targets.itl, req.claim.targets.deadline
        more = req.max_len - req.prompt_len - 1
        if deadline is None or not more:
            return own, 0.0
        if more * self.pace.worst(self._rows(own), self.context, own) > HALF * deadline:
            own = HALF * deadline / more
        return own, more * self.pace.worst(self._rows(own), self.context, own)

    def _rows(self, itl: float | None) -> int:
        """The most decode rows that there can be."""
        assert self.pace is not None
        most = None if itl is None else self.pace.most_rows(itl)
        slots = self.scheduler.slots.count
        return slots if most is None else max(1, min(most, slots))

    def _cost(self, rows: int, itl: float | None, start: int, end: int) -> tuple[float, float]:
        """Seconds that the prompt takes from `start` on, and its last tokens each, at the slowest."""
        assert self.pace is not None
        cost = self.pace.seconds(rows, start, end - start, itl, surely=True)
        return cost, max(self.pace.per_token(rows, end, itl), cost / max(1, end - start))

    def _renewed(self, req: Req, rows: int, itl: float | None) -> Promise:
        """The promise of `req`, for what is left of its prompt."""
        assert req.promise is not None
        cost, rate = self._cost(rows, itl, req.computed_len, len(req.tokens))
        return Promise(req.promise.due, cost, rate, req.promise.itl, req.promise.expected)

    def _check_pace(self, itl: float | None) -> None:
        """Can the rows that run, and one more, keep this time between tokens?"""
        assert self.pace is not None
        if itl is None:
            return
        most = self.pace.most_rows(itl)
        running = len(self.scheduler.running)
        if most is not None and running + 1 > most:
            seconds = self.pace.alone(running + 1)
            raise Refusal(
                "rate_limit_exceeded",
                f"tokens would come every {seconds * 1e3:.0f} ms; {itl * 1e3:.0f} ms are needed",
                PARAM,
                retry_after=1.0,
            )

    def _landings(
        self, promises: list[tuple[Req, Promise]], begin: float, worst: float, rank: Rank
    ) -> dict[int, float]:
        """When each first token comes at the latest, if promises alone are served, from `begin` on: at the end of a
        step that may be the `worst`."""
        found: dict[int, float] = {}
        slots = self._slot_times(max([rank, *(req.rank for req, _ in promises)]), begin)
        at = begin
        for req, promise in sorted(promises, key=lambda each: (each[1].due, each[0].id)):
            if req.slot is None:
                at = max(at, next(slots, math.inf))
            at += promise.left(len(req.tokens) - req.computed_len)
            found[req.id] = at + worst
        return found

    def _slot_times(self, rank: Rank, begin: float) -> Iterator[float]:
        """When slots are to be had, soonest first: free ones, those of lower ranks, those of answers that end."""
        assert self.pace is not None
        scheduler = self.scheduler
        itl = self._tightest()
        step = self.pace.worst(self._rows(itl), self.context, itl)
        times = [begin] * scheduler.slots.free_count
        for req in scheduler.running.values():
            if req.finish is not None or (req.rank > rank and req.promise is None):
                times.append(begin + self.depth * step)
            elif _reads(req):
                times.append(math.inf)  # its prompt is not read before the promises are
            else:
                times.append(begin + (req.max_len - req.total_len + self.depth) * step)
        return iter(sorted(times))

    def _has_pages(self, req: Req, cached: int, seconds: float, rows: int) -> bool:
        """Are there pages for `req` beside those for other promises, and for what grows until it is due?"""
        assert self.pace is not None
        scheduler = self.scheduler
        size, pool = scheduler.page_size, scheduler.pool
        free = pool.free_count + scheduler.tree.idle_pages
        step = self.pace.alone(1)
        steps = math.ceil(seconds / step) if step and seconds < math.inf else 1 << 31
        need = -(-req.total_len // size) - cached // size
        for other in scheduler.waiting.promised.values():
            need += -(-other.total_len // size) - len(other.pages)
        for other in scheduler.running.values():
            if other.rank > req.rank and other.promise is None:
                free += sum(pool.refs(page) <= 2 for page in other.pages)
            else:
                reach = min(other.max_len - 1, other.total_len + steps)
                need += max(0, -(-reach // size) - len(other.pages))
        for held in (scheduler.waiting.values(), scheduler.paused.values()):
            for other in held:
                if other.promise is None:
                    free += sum(pool.refs(page) <= 2 for page in other.pages)
        return need <= free

    def _expected(self, req: Req, cached: int, itl: float | None) -> float:
        """Seconds from now until the first token of `req`, as things go on: behind more urgent prompts, and behind
        those of its own rank as far as shares let them go first."""
        assert self.pace is not None
        scheduler, pace = self.scheduler, self.pace
        rows = sum(other.phase is Phase.DECODE for other in scheduler.running.values())

        def time(other: Req, start: int) -> float:
            return pace.seconds(rows, start, len(other.tokens) - start, itl)

        ahead = own = time(req, cached)
        shares: dict[str, float] = {req.claim.owner: 0.0}
        for other in scheduler.running.values():
            if _reads(other) and other.rank <= req.rank:
                ahead += time(other, other.computed_len)
        for other in scheduler.waiting.values():
            if other.rank < req.rank:
                ahead += time(other, other.computed_len)
            elif other.rank is req.rank:
                owner = other.claim.owner
                shares[owner] = shares.get(owner, 0.0) + time(other, other.computed_len)
        own += shares[req.claim.owner]
        return ahead + sum(min(each, own) for each in shares.values())

    def _refuse(self, expected: float, retry: float, whole: bool) -> None:
        told = "in time for the whole answer" if expected == math.inf else f"in about {expected * 1e3:.0f} ms"
        what = "deadline_ms" if whole else "ttft_ms"
        raise Refusal(
            "rate_limit_exceeded",
            f"the first token would come {told}: {what} cannot be kept now",
            PARAM,
            retry_after=min(max(retry, 0.05), 3600.0) if retry < math.inf else 60.0,
        )


def _reads(req: Req) -> bool:
    """Its first token is still to come, or its prompt is read again."""
    return req.phase is Phase.PREFILL or (req.phase is Phase.DECODE and req.output_len == 0)
