"""Who is let into the batch, and whose prompt is read next. Takes slots and pages for them through the scheduler.

Runs inside of `Scheduler.plan` and is a part of it that has a file of its own: who is next is said by the line, who
has to go by `victims`, and what may be taken is decided here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.runtime.claim import Rank
from headrace.runtime.line import dated, urgency
from headrace.runtime.plan import OpenPlan, PageCopy
from headrace.runtime.prospect import grant_of
from headrace.runtime.request import Phase, Req
from headrace.runtime.victims import lesser_holder, makes_way, stuck_holder

if TYPE_CHECKING:
    from headrace.runtime.scheduler import Scheduler


class Admission:
    """The admissions of one scheduler, `core`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.core = scheduler

    def read_prompts(self, reading: list[Req], step: OpenPlan, most_rows: int | None, hurry: bool) -> None:
        """Chunks of `reading`, in order of admission, and admissions, the more urgent first, while there is room.

        most_rows, hurry: see `Scheduler.plan`."""
        # Those whose slot is written again come first: their readers were promised the next step but one.
        reading.sort(key=lambda req: (req.id not in self.core._regrants, *urgency(req, hurry)))
        reserved: int | None = None
        rest = iter(reading)
        req = next(rest, None)
        line = self.core.waiting
        shut = False  # nobody more is admitted in this step
        while step.room > 0:
            # Where slots are short, those that are left belong to promises: it is their turn then.
            hurry = hurry or self.core.slots.free_count <= len(line.promised)
            head = None if shut else line.first(hurry, self.core.running.values())
            if req is not None and (
                head is None or req.id in self.core._regrants or urgency(req, hurry) <= urgency(head, hurry)
            ):
                # It may have lost its pages meanwhile, to a decode row or to who was admitted before it.
                if req.phase is Phase.PREFILL and not (req.retracting or req.yielding):
                    self.core._prefill(req, step)
                req = next(rest, None)
                continue
            if head is None:
                return
            if not self._has_slot(head, most_rows):
                self._make_way(head)
                shut = not self._has_slot(head, most_rows)
                continue
            if reserved is None:
                # Summed once: a burst of admissions costs as much per request as a single one.
                reserved = sum(map(self.growth, self.core.running.values()))
            if not self._admit(head, reserved + self._promised_pages(head), step):
                # What it lacks may be kept for a promise, which can as well go now.
                shut = hurry or not line.promised
                hurry = True
                continue
            self.core._prefill(head, step)
            reserved += self.growth(head)

    def _has_slot(self, req: Req, most_rows: int | None) -> bool:
        """May `req` take one more slot? Those of waiting promises are not given to others."""
        if most_rows is not None and len(self.core.running) >= max(1, most_rows):
            return False
        kept = len(self.core.waiting.promised) if not dated(req) else 0
        return self.core.slots.free_count > kept

    def _make_way(self, head: Req) -> None:
        """No slot is to be had: others may have to give theirs up, for those who are more urgent."""
        above = {rank: self.core.waiting.above(rank) for rank in Rank}
        if not above[Rank.BATCH] and not self.core.shares.several:
            return
        for req in makes_way(self.core.running, above, head):
            req.yielding = True
            self.core._yielding += 1
            self.core.counters.yields += 1
            self.core._settle(req)

    def _promised_pages(self, head: Req) -> int:
        """Pages that those who wait with a promise will need; none of them are for `head`, if it has no promise."""
        if dated(head) or not self.core.waiting.promised:
            return 0
        promised = self.core.waiting.promised.values()
        return sum(self.core._pages_for(len(req.tokens)) - len(req.pages) for req in promised)

    def _admit(self, req: Req, reserved: int, step: OpenPlan) -> bool:
        """Give the first in line a slot and pages for all it knows; False if it must wait.
        `reserved`: pages kept for the growth of those who run, and for others.

        Nobody overtakes the first in line, so a large request is not starved by small ones. Those of a lower rank
        give up what it needs."""
        while True:
            hit = self.core._find_prefix(req)
            need = self.core._pages_for(len(req.tokens)) - len(req.pages) - hit
            fits = self._fits(req, need, reserved)
            start = hit * self.core.page_size or (req.computed_len if req.copy_from is None else req.copy_len)
            if fits and self.core.gallery.can_start(req, start, step):
                break
            if not req.pages and req.copy_from is None:
                self.core._drop_lease(req)  # not while waiting: the cache may have more for it by then
            if not fits and self.core.drafts.give_way():
                continue
            victim = stuck_holder(req, self.core.running, self.core.paused, self.core.waiting)
            if victim is None and not fits:
                victim = lesser_holder(req, self.core.running, self.core.paused, self.core.waiting)
            if victim is None:
                # Nothing runs, and nobody else holds anything but pins: they go before a request waits for ever.
                if not fits and not self.core.running and self.core.pins.break_one():
                    continue
                return False
            self.core._retract(victim)
        if hit:
            self.core._share_hit(req, hit)
        found = self.core._make_room(need)
        assert found, "idle pages were counted that eviction did not find"
        req.pages.extend(self.core.pool.take(req.salt) for _ in range(need))
        if req.copy_from is not None:
            target = req.pages[req.computed_len // self.core.page_size]
            # The hold on the source ends when the step retires.
            step.copies.append(PageCopy(req.copy_from, target))
            req.computed_len = req.copy_len
            req.copy_from = None
            self.core.counters.copied_pages += 1
        if hit or not req.admitted:
            self.core.counters.cached_tokens += req.computed_len
        if not req.admitted:
            req.admitted = True
            req.cached_len = req.computed_len
        req.charged_len = max(req.charged_len, req.computed_len)  # what the cache had costs its owner nothing
        self.core.waiting.admit(req)
        self.core.running[req.id] = req
        req.phase = Phase.PREFILL
        req.slot = self.core.slots.take()
        self.core.counters.admissions += 1
        step.grants.append(grant_of(req))
        return True

    def _fits(self, req: Req, need: int, reserved: int) -> bool:
        """Are `need` pages to be had, and some for everybody's growth? Alone, a request needs no headroom."""
        available = self.core.pool.free_count + self.core._evictable
        if not self.core.running:
            return need <= available
        return need + self.growth(req, self.core._pages_for(len(req.tokens))) + reserved <= available

    def growth(self, req: Req, pages: int | None = None) -> int:
        """Pages beyond `pages` (None: those it has) that the next `ahead_tokens` tokens of `req` will need."""
        reach = min(req.max_len - 1, req.total_len + self.core.ahead_tokens)
        return max(0, self.core._pages_for(reach) - (len(req.pages) if pages is None else pages))
