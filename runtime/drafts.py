"""Prompts that are still being typed: computed with what a step has left, given up when anybody needs their
pages.

A draft is a Req that samples nothing. It is in none of the scheduler's three containers and has a slot only while
a chunk of it is in flight. Its pages never enter the prefix tree: typed text that is never sent can be found by
nobody. What is sent is a request of its own, a fork of the draft, which is dropped then.

Who holds a page of a draft, from birth to end:

    cached before: the prompt begins with it                     tree + draft (leased)
    granted for a chunk                                          draft
    the text changes in the middle of a page of its own          draft: the rest of the page is written again
    the text changes in the middle of a page it shares           draft, as the source of a copy (its own page
    next) the draft is sent                                            draft + the request, until the draft is
    dropped dropped, or given up for others                              free, or the tree's; in flight: when
    that lands
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from headrace.runtime.image import ImageSpan
from headrace.runtime.plan import OpenPlan, PageCopy, PlanRow, StepPlan
from headrace.runtime.prospect import grant_of
from headrace.runtime.request import FinishReason, Phase, Req

if TYPE_CHECKING:
    from headrace.runtime.scheduler import Scheduler

Spans = tuple[ImageSpan, ...]

CHUNK = 512  # tokens of all drafts in one step at most: who arrives meanwhile waits for that step
LEAST = 16  # and on a slow device at least
WAIT = 0.050  # seconds that a step of drafts alone may take, about
# A step beside others' rows carries tokens of drafts once in so many steps: what it takes longer is then
# outside of everybody's 99th percentile. Steps that are nobody else's are free.
REST = 100


class Drafts:
    """`open, write, drop` from outside; `fill`, `landed`, `give_way` from the scheduler."""

    def __init__(self, core: Scheduler) -> None:
        self.held: OrderedDict[int, Req] = OrderedDict()  # least recently served first
        self.chunk, self.rest = CHUNK, REST
        self.grants = 0
        self.computed = 0  # tokens run through the model for drafts
        self.given_up = 0  # times that a draft lost its pages to others
        self._core = core
        self._next: dict[int, tuple[list[int], Spans]] = {}  # written while a chunk was in flight
        self._spent: dict[int, int] = {}  # tokens computed for each
        self._starts: dict[int, int] = {}  # where the row in flight of each begins
        self.on_landed: Callable[[Req], None] = lambda req: None  # a chunk of this draft is there
        self._rested = 0  # the number of the first step that may carry drafts beside others

    # -- from outside ------------------------------------------------------------------------------------------

    def open(self, req: Req) -> None:
        """`req`, whose prompt is what is known of a text so far, is computed while nobody needs the device."""
        assert req.id not in self.held and req.phase is Phase.WAITING and req.fork is None
        self.held[req.id] = req
        self._spent[req.id] = 0
        self._adopt(req)

    def write(self, req: Req, ids: list[int], spans: Spans = ()) -> None:
        """The prompt of the draft is `ids` from now on; what is computed of their common beginning stays."""
        assert ids and self.held.get(req.id) is req
        if req.inflight:
            self._next[req.id] = (ids, spans)
        else:
            self._rewrite(req, ids, spans)

    def drop(self, req: Req) -> None:
        """The draft is no more. Its pages come back at once, or when its chunk lands. Harmless when repeated."""
        if req.finish is None:
            req.finish = FinishReason.CANCELLED
            if not req.inflight:
                self._release(req)

    def spent(self, req: Req) -> int:
        """Tokens that were run through the model for this draft, wanted or not."""
        return self._spent[req.id]

    def common(self, req: Req, ids: Sequence[int], spans: Spans = ()) -> int:
        """With how many tokens of the draft, as it is being computed, a prompt begins."""
        return _common(keyed(req.tokens, req.spans), keyed(ids, spans))

    def ready(self, req: Req) -> int:
        """Tokens whose KV the draft has, or will have when what is in flight lands."""
        return req.computed_len if req.copy_from is None else req.copy_len

    @property
    def due(self) -> Mapping[int, Req]:
        """Drafts that have something to compute and could begin now."""
        if self._starts or (self._core.running and self._core.counters.steps < self._rested):
            return {}
        return {req.id: req for req in self.held.values() if self.ready(req) < len(req.tokens)}

    # -- from the scheduler ------------------------------------------------------------------------------------

    def fill(self, step: OpenPlan, busy: bool) -> None:
        """Rows of drafts, with what is left of `step`. busy: it holds rows of others.

        Never while a request waits for room, never two steps at a time, and some slot stays free."""
        core = self._core
        if not self.held or core.waiting or (busy and core.counters.steps < self._rested):
            return
        spare = min(1, core.slots.count - 1)
        room = min(step.room, self.chunk)
        least = step.room - room
        # What those who run may need before this step has landed is not touched: none of them may sit out for it.
        kept = sum(core.admission.growth(req) + 1 + 3 // core.page_size for req in core.running.values())
        for req in list(self.due.values()):
            if step.room <= least or core.slots.free_count <= spare:
                break
            if busy and any(span.end > self.ready(req) for span in req.spans):
                continue  # an encoder's time is not what a step has left
            self._start(req, step, step.room - least, kept)
        if busy and self._starts:
            self._rested = core.counters.steps + self.rest

    def alone_in(self, plan: StepPlan) -> bool:
        """The plan, which has not retired, is of nobody else."""
        return not (plan.decode or plan.encodes) and all(row.req_id in self.held for row in plan.prefill)

    def took(self, tokens: int, seconds: float) -> None:
        """A step of drafts alone took so long: the next ones are of a size that whoever arrives can wait for."""
        if seconds > WAIT:
            self.chunk = max(LEAST, min(self.chunk, tokens) // 2)
        elif tokens * 2 > self.chunk and seconds < WAIT / 3:
            self.chunk = min(CHUNK, self.chunk * 2)

    def landed(self, row: PlanRow) -> None:
        """A chunk of a draft is there. Marks that were made meanwhile are acted on."""
        req = self.held[row.req_id]
        req.inflight -= 1
        del self._starts[req.id]
        self._core.gallery.leave(req)
        assert req.slot is not None
        self._core.slots.give_back(req.slot)
        req.slot = None
        req.phase = Phase.WAITING
        if req.finish is not None:
            self._release(req)
        elif (wanted := self._next.pop(req.id, None)) is not None:
            self._rewrite(req, *wanted)
        self.on_landed(req)

    def handed_over(self, parent: Req, req: Req) -> None:
        """`req` shares the pages of `parent`. If that is a draft, they may be found by others from now on:
        those that have landed at once, so that whatever `req` hands on to its own forks is leased."""
        if parent.id in self.held:
            start = self._starts.get(parent.id, req.landed_len)
            req.landed_len = min(req.landed_len, start // self._core.page_size * self._core.page_size)
            self._core._enter_tree(req)
            if parent.lease is not None and req.lease is not None and req.lease.depth > parent.lease.depth:
                # The draft may outlive the request, by the step that it is in: what it maps is leased as long.
                self._core.tree.release(parent.lease)
                parent.lease = self._core.tree.lease_upto(req.lease, req.lease.depth)

    def give_way(self) -> bool:
        """The youngest draft that holds pages gives them up. False if none does, or only with a chunk in
        flight."""
        able = [
            req for req in self.held.values() if not req.inflight and (req.pages or req.copy_from is not None)
        ]
        if not able:
            return False
        req = max(able, key=lambda req: req.id)
        self._core._give_back(req)
        req.computed_len = req.landed_len = 0
        self.given_up += 1
        return True

    def check(self) -> None:
        """Raise AssertionError if what a draft is differs from what its marks say."""
        for req in self.held.values():
            assert (req.slot is not None) == (req.inflight == 1) and req.inflight <= 1
            assert not (req.pausing or req.retracting or req.changing) and req.total_len == len(req.tokens)
            assert self.ready(req) <= len(req.tokens) and req.landed_len == req.computed_len
        assert self._starts.keys() == {req.id for req in self.held.values() if req.inflight}
        assert self._next.keys() <= self._starts.keys()
        assert self._spent.keys() == self.held.keys()

    # -- pages -------------------------------------------------------------------------------------------------

    def _adopt(self, req: Req) -> None:
        """What the cache holds of the beginning is the draft's as well."""
        core = self._core
        if not core.prefix_cache or req.pages or req.copy_from is not None:
            return
        core._drop_lease(req)
        req.lease = core.tree.match(
            req.salt, keyed(req.tokens, req.spans), req.reusable_len // core.page_size
        )
        for page in req.lease.pages():
            core.pool.share(page, req.salt)
            req.pages.append(page)
        req.computed_len = req.landed_len = len(req.pages) * core.page_size

    def _start(self, req: Req, step: OpenPlan, room: int, kept: int) -> None:
        """One chunk, as far as there are pages that nobody else may want."""
        core, size = self._core, self._core.page_size
        self._adopt(req)
        start = self.ready(req)
        free = max(0, core.pool.free_count + core._evictable - kept)
        count = min(room, len(req.tokens) - start, (len(req.pages) + free) * size - start)
        if count < 1:
            return
        count, images = core.gallery.look(req, start, count, step) if req.spans else (count, ())
        if count < 1:
            return
        need = core._pages_for(start + count) - len(req.pages)
        found = core._make_room(need)
        assert found, "idle pages were counted that eviction did not find"
        req.pages.extend(core.pool.take(req.salt) for _ in range(need))
        if req.copy_from is not None:
            # The hold on the source ends when the step retires.
            step.copies.append(PageCopy(req.copy_from, req.pages[req.computed_len // size]))
            req.computed_len, req.copy_from = req.copy_len, None
            core.counters.copied_pages += 1
        req.slot = core.slots.take()
        req.phase = Phase.PREFILL
        step.grants.append(grant_of(req))
        ids = tuple(req.tokens[start : start + count])
        step.take(PlanRow(req.id, req.slot, start, count, ids, False, images))
        req.computed_len += count
        # A fork of it may build on what is in flight: that lands before any row of the fork.
        req.landed_len = req.computed_len
        req.inflight += 1
        self._starts[req.id] = start
        self.grants += 1
        self.computed += count
        self._spent[req.id] += count
        core.counters.prefill_tokens_computed += count
        self.held.move_to_end(req.id)

    def _rewrite(self, req: Req, ids: list[int], spans: Spans) -> None:
        """Nothing is in flight: the prompt becomes `ids`, and the KV of what differs is cut off."""
        self._cut(req, min(self.ready(req), self.common(req, ids, spans)))
        req.tokens[:] = ids
        req.spans = spans
        req.prompt_len = req.total_len = len(ids)
        req.max_len = len(ids) + 1
        self._adopt(req)

    def _cut(self, req: Req, keep: int) -> None:
        """The draft has the KV of its first `keep` tokens and of no more."""
        core, size = self._core, self._core.page_size
        if keep >= self.ready(req):
            return
        full, rest = divmod(keep, size)
        if req.copy_from is not None:
            if keep > req.computed_len:
                req.copy_len = keep  # of the same page
                return
            core._sources.drop(req.copy_from)
            req.copy_from = None
        keeps = full
        if rest and full < len(req.pages):
            page = req.pages[full]
            if core.pool.refs(page) == 1:
                keeps = full + 1  # its own: what follows is written over, behind every step that reads it now
            else:
                core._sources.hold(page, req.salt)
                req.copy_from, req.copy_len = page, keep
        for page in req.pages[keeps:]:
            core.pool.drop(page)
        del req.pages[keeps:]
        req.computed_len = req.landed_len = keep if keeps > full else full * size
        if req.lease is not None and req.lease.depth > full:
            lease = core.tree.lease_upto(req.lease, full)
            core.tree.release(req.lease)
            req.lease = lease

    def _release(self, req: Req) -> None:
        assert req.finish is not None and req.inflight == 0
        self._core._give_back(req)
        req.phase = Phase.DONE
        self._next.pop(req.id, None)
        del self.held[req.id], self._spent[req.id]


def keyed(ids: Sequence[int], spans: Spans) -> list[int]:
    """What tells the content of a prompt apart from all others: ids, and keys where pictures are."""
    found = list(ids)
    for span in spans:
        found[span.start : span.end] = [span.image.key] * (span.end - span.start)
    return found


def _common(one: list[int], other: list[int]) -> int:
    """The length of the common beginning. Slices are compared: a prompt may be long, and this is often asked."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
