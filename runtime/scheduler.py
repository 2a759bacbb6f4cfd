"""Which request computes what in the next step. Ids and lengths only: no tensor, no event loop, no clock.

State moves forward once, in `plan`, as if the step had run, and is settled once, in `retire`, when it has.
Between the two nothing is freed: cancel, pause and retraction are marks that `_settle` reads when no launched
step holds the request any more. That is what makes plan N+1 before retire N safe.

Who holds a page, from birth to end:

    granted to a Req (at admission, or when a decode row crosses a page edge)    Req
    its step retired and the page is full                                        Req + tree
    the Req ends or is retracted                                                 tree
    evicted, and no other Req or fork holds it                                   free
    source of a fork's part page, from `add` until the copying step retires      parent's owners + the fork
    the part page of a Req that has ended and may be forked                      remnants, until pages are needed
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator

from headrace.runtime.admission import Admission
from headrace.runtime.audit import audit
from headrace.runtime.distrust import distrust
from headrace.runtime.drafts import Drafts
from headrace.runtime.gallery import Gallery
from headrace.runtime.line import PATIENCE, Line
from headrace.runtime.pages import PagePool, SlotPool
from headrace.runtime.pins import Pins
from headrace.runtime.plan import (
    NON_FINITE,
    DecodeRows,
    OpenPlan,
    PagePatch,
    PlanRow,
    Price,
    StepPlan,
    StepResult,
    row_price,
)
from headrace.runtime.prefix import PrefixTree
from headrace.runtime.probes import masks_of, probes_of, tell_logprobs
from headrace.runtime.prospect import Prospect, become, grant_of, prospect_of
from headrace.runtime.refusal import Refusal
from headrace.runtime.request import Change, FinishReason, Phase, Req
from headrace.runtime.retired import Counters, Retired
from headrace.runtime.shares import Shares
from headrace.runtime.sharing import Remnants, Sources, share_parent
from headrace.runtime.victims import victim_of


class Scheduler:
    """`add, cancel, pause, resume, plan, retire`. A Req is in exactly one of `waiting, running, paused`.

    page_count, page_size: the KV pool. slots: requests in one step at most. chunk_tokens: prompt tokens in one
    step at most. ahead_tokens: how far every running request must be able to grow before another is admitted;
    a low value packs more requests and retracts more often. gallery: of pictures; None: there are none. patience:
    admissions that may pass over a class that waits. pin_share: of the pages, what pins may hold."""

    def __init__(
        self,
        page_count: int,
        page_size: int,
        slots: int,
        chunk_tokens: int,
        *,
        prefix_cache: bool = True,
        waiting_limit: int = 1024,
        ahead_tokens: int = 64,
        gallery: Gallery | None = None,
        patience: int = PATIENCE,
        pin_share: float = 0.5,
    ) -> None:
        assert page_size >= 1 and chunk_tokens >= 1 and waiting_limit >= 1 and ahead_tokens >= 0
        self.page_size = page_size
        self.chunk_tokens = chunk_tokens
        self.prefix_cache = prefix_cache
        self.waiting_limit = waiting_limit
        self.ahead_tokens = ahead_tokens
        self.pool = PagePool(page_count)
        self.slots = SlotPool(slots)
        self.tree = PrefixTree(self.pool, page_size)
        self.remnants = Remnants(self.pool)
        self.gallery = gallery or Gallery(0, 1)
        self.shares = Shares()
        self.waiting = Line(self.shares, patience)
        self.admission = Admission(self)
        self.pins = Pins(self.tree, int(page_count * pin_share))
        self.drafts = Drafts(self)
        self.running: dict[int, Req] = {}
        self.paused: dict[int, Req] = {}
        self.counters = Counters()
        self._flight: deque[StepPlan] = deque()
        self._decoding: deque[list[Req]] = deque()  # of each plan in flight, the requests of its decode rows
        self._chosen: list[Req] = []  # the decode rows of the last plan, and two columns of it
        self._columns: tuple[list[int], array[int]] = ([], array("i"))
        self._changing: set[int] = set()  # ids of live requests with a change that waits for steps in flight
        self._regrants: dict[int, Req] = {}  # running ones whose slot is written again before their next row
        self.promises = 0  # live requests with a promise
        self._probing = 0  # live requests that want logprobs: without one, no step looks for any
        self._dry = False  # this plan found no page and nobody to take one from: nothing lands before its end
        self._yielding = 0  # running ones that are to make way
        self._grammars = 0  # live requests that follow a grammar
        self._sources = Sources(self.pool)

    # -- verbs -------------------------------------------------------------------------------------------------

    @property
    def max_tokens(self) -> int:
        """The longest `Req.max_len` that can ever run: its last token needs no KV."""
        return self.pool.count * self.page_size + 1

    def add(self, req: Req) -> None:
        """`req` waits for admission. Raises Refusal if it can never fit or too many wait already.

        A fork takes its references to the parent's pages here, so the parent may end at any time after; what one
        that has ended left behind is taken likewise."""
        assert req.phase is Phase.WAITING and req.id not in self.waiting and req.finish is None
        if req.max_len > self.max_tokens:
            raise Refusal(
                "context_length_exceeded",
                f"prompt and answer need {req.max_len} tokens; this server can hold {self.max_tokens}",
            )
        self.gallery.check_sizes(req)
        if len(self.waiting) >= self.waiting_limit:
            raise Refusal(
                "server_is_overloaded", f"{len(self.waiting)} requests are waiting already", retry_after=1.0
            )
        self.shares.arrive(req)
        if req.fork is not None:
            parent = req.fork.parent
            share_parent(req, self.tree, self._sources, self.remnants, cached=self.prefix_cache)
            self.drafts.handed_over(parent, req)
        elif req.promise is not None:
            self._hold_prefix(req)
        self._grammars += req.grammar is not None
        self.waiting.join(req)
        self._probing += req.logprobs is not None
        self.promises += req.promise is not None

    def cancel(self, req: Req, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """`req` is in no plan from now on. What it holds comes back at once, or when its last step retires.

        Harmless on a request that has ended: the first reason stays."""
        if req.finish is not None:
            return
        req.finish = reason
        self._settle(req)

    def pause(self, req: Req) -> None:
        """`req` leaves the batch and keeps its pages (until others need them); its slot goes back."""
        if req.finish is None and not req.pausing:
            req.pausing = True
            self._settle(req)

    def resume(self, req: Req) -> None:
        """A paused `req` is first in line again. It decodes on at once if it still has its pages."""
        if req.finish is not None or not req.pausing:
            return
        req.pausing = False
        if req.phase is Phase.PAUSED:
            del self.paused[req.id]
            self._wait_first(req)

    def change(self, req: Req, change: Change) -> None:
        """`req` is as `change` says from the first token on that no launched step samples (`changed_at`). A
        `max_len` that was passed means one token more; a later change replaces one that waits."""
        assert req.prompt_len < change.max_len <= self.max_tokens
        if req.finish is None:
            req.changing = change
            self._changing.add(req.id)
            self._settle(req)

    def plan(
        self,
        budget: int | None = None,
        price: Price = row_price,
        *,
        most_rows: int | None = None,
        hurry: bool = True,
    ) -> StepPlan | None:
        """The next step, or None if nothing can run. `budget` replaces `chunk_tokens` for this step; `price`: how
        many tokens of it the encode of a picture takes; `most_rows` bounds how many requests may run; `hurry`:
        promises have no time to lose.

        Decode rows first. Then prompts: the chunks of those who run and the admissions of those who wait, the more
        urgent first and in order of admission, while budget, slots and pages last. All state is moved forward: the
        plan must be launched, and retired in order."""
        step = OpenPlan(self.chunk_tokens if budget is None else budget, price)
        self._dry = False
        able = self._plannable()
        decoding, decode = self._decode_rows(able, step.patches)
        reading = [req for req in able if req.phase is Phase.PREFILL]
        self.admission.read_prompts(reading, step, most_rows, hurry)
        masks = masks_of(decoding, step.prefill, self.running) if self._grammars else ()
        probes = probes_of(decoding, step.prefill, self.running) if self._probing else ()
        self.drafts.fill(step, busy=bool(decoding or step.prefill))
        plan = step.close(self.counters.steps, decode, masks, probes)
        if plan is not None:
            self.counters.steps += 1
            self._flight.append(plan)
            self._decoding.append(decoding)
        return plan

    def prospect(self, hurry: bool = True) -> Prospect | None:
        """What the next plan will find; see `prospect_of`."""
        head = self.waiting.first(hurry, self.running.values()) if self.waiting else None
        waiting = self.waiting or self.drafts.due
        head = head or next(iter(waiting.values()), None)
        return prospect_of(self.running, waiting, head, self._plannable)

    def retire(self, plan: StepPlan, result: StepResult) -> list[Retired]:
        """Settle the oldest launched plan: tokens are appended, finishes decided, full pages enter the tree.

        One Retired for each sampling row whose request had not ended before."""
        assert self._flight and self._flight[0] is plan, "steps retire in the order they were planned"
        self._flight.popleft()
        for copy in plan.copies:
            self._sources.drop(copy.source)  # held since `add` of the fork, so that it could not be reused
        events: list[Retired] = []
        tokens = result.tokens
        decoding = self._decoding.popleft()
        finite = NON_FINITE not in tokens
        quick = finite and not self._changing
        size = self.page_size
        for req, token in zip(decoding, tokens, strict=False):
            landed = req.landed_len + 1
            if (
                quick
                and req.grammar is None
                and landed % size
                and req.finish is None
                and not (req.pausing or req.retracting or req.yielding)
                and token not in req.params.stop_ids
                and landed + 1 < req.max_len
            ):
                # Nearly every row of nearly every step: no page is full, no mark waits, nothing ends. `_land` would
                # do just this.
                req.inflight -= 1
                req.landed_len = landed
                req.tokens.append(token)
                events.append(Retired(req, token, None))
            else:
                self._land(req, landed, token, events)
        sampled = len(decoding)
        for row in plan.prefill:
            if row.req_id in self.drafts.held:
                self.drafts.landed(row)
                continue
            sample = None
            if row.sample:
                sample = tokens[sampled]
                sampled += 1
            self._land(self.running[row.req_id], row.start + row.count, sample, events)
        assert sampled == len(tokens), "one token per sampling row"
        if plan.probes:
            tell_logprobs(plan, result, events, self.running)
        return events

    @property
    def idle(self) -> bool:
        """Nothing is in flight and no plan could be made now (paused requests may exist)."""
        return not self._flight and not self.running and not self.waiting

    @property
    def flight(self) -> int:
        """Steps launched and not retired."""
        return len(self._flight)

    @property
    def pages_in_use(self) -> int:
        """Pages that a live request holds; the rest of the used ones are only cached."""
        return self.pool.used_count - self._evictable

    def flush_cache(self) -> int:
        """Drop every cached page and picture that no live request holds, pinned or not; returns how many pages."""
        while self.pins.break_one():
            pass
        self.gallery.clear()
        count = len(self.remnants)
        while self.remnants.drop_one():
            pass
        return count + self.tree.clear()

    # -- rows --------------------------------------------------------------------------------------------------

    def _plannable(self) -> list[Req]:
        """Who may have a row now, in order of admission."""
        # At max_len the last sample is launched already; only its retirement is missing.
        able = [
            req
            for req in self.running.values()
            if req.finish is None and not req.pausing and not req.retracting and req.total_len < req.max_len
        ]
        able = [req for req in able if not req.yielding] if self._yielding else able
        return [req for req in able if req.changing is None] if self._changing else able

    def _decode_rows(self, able: list[Req], patches: list[PagePatch]) -> tuple[list[Req], DecodeRows]:
        """One row for each of `able` that decodes and has a page for it; the requests, and their rows."""
        size, decoding = self.page_size, Phase.DECODE
        if self._grammars:
            # Which tokens may come next is known once the last one has landed: such a row skips the step between.
            able = [req for req in able if req.grammar is None or not req.inflight]
        chosen: list[Req] = []
        starts: list[int] = []
        for req in able:
            # One before it in this loop may have taken its pages: then it is marked, or has left the batch.
            if req.phase is not decoding or req.retracting:
                continue
            start = req.computed_len
            if start == len(req.pages) * size and not self._next_page(req, patches):
                continue
            assert req.total_len == start + 1
            # At once, not after the loop: the next one may look for a victim, and this one is in flight now.
            req.computed_len = start + 1
            req.total_len = start + 2
            req.inflight += 1
            chosen.append(req)
            starts.append(start)
        self.counters.decode_tokens_computed += len(chosen)
        if chosen != self._chosen:
            # Mostly they are those of the step before, in the same slots: who leaves the batch is forgotten here.
            self._chosen = chosen
            slots = [req.slot for req in chosen if req.slot is not None]
            assert len(slots) == len(chosen), "who runs has a slot"
            self._columns = [req.id for req in chosen], array("i", slots)
        return chosen, DecodeRows(*self._columns, array("i", starts))

    def _prefill(self, req: Req, step: OpenPlan) -> None:
        """The next chunk; none before its picture's turn. One that has one token to feed decodes at once."""
        assert req.slot is not None and req.phase is Phase.PREFILL and req.total_len == len(req.tokens)
        edge = req.computed_len == len(req.pages) * self.page_size
        if (again := req.id in self._regrants) and edge and not self._next_page(req, []):
            return
        start, count = req.computed_len, min(step.room, req.total_len - req.computed_len)
        count, images = self.gallery.look(req, start, count, step) if req.spans else (count, ())
        if not count:
            return
        if again:
            del self._regrants[req.id]
            step.grants.append(grant_of(req))
            self.counters.regrants += 1
        last, ids = start + count == req.total_len, tuple(req.tokens[start : start + count])
        step.take(PlanRow(req.id, req.slot, start, count, ids, last, images))
        req.computed_len += count
        req.inflight += 1
        refeed = last and count == 1 and (req.output_len > 0 or start < req.forked_len)
        if not refeed:
            self.counters.prefill_tokens_computed += count
        if last:
            req.total_len += 1
            req.phase = Phase.DECODE
            self.counters.decode_tokens_computed += 1

    # -- pages -------------------------------------------------------------------------------------------------

    def _pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def _next_page(self, req: Req, patches: list[PagePatch]) -> bool:
        """One page more, for the KV of token `computed_len`. False: `req` sits this step out (or was retracted
        itself)."""
        while not self._make_room(1):
            # One look for a victim in vain is enough: it reads every waiting and paused request.
            victim = None if self._dry else victim_of(self.running, self.paused, self.waiting)
            if victim is None:
                self._dry = True
                return False  # marked ones are still in flight; their pages come when they land
            self._retract(victim)
            if victim is req:
                return False
        assert req.slot is not None
        page = self.pool.take(req.salt)
        patches.append(PagePatch(req.slot, len(req.pages), page))
        req.pages.append(page)
        return True

    @property
    def _evictable(self) -> int:
        """Cached pages that eviction would free. The source of a copy may lie idle in the tree, or be a remnant,
        when the parent of its fork has ended; its hold keeps it from becoming free, so it is none of them."""
        idle = self.tree.idle_pages + len(self.remnants)
        if self._sources:
            idle -= sum(map(self.tree.is_idle, self._sources))
            idle -= sum([page in self._sources for page in self.remnants.pages()])
        return idle

    def _make_room(self, count: int) -> bool:
        """Evict until `count` pages are free. False if the cache has no more to give."""
        while self.pool.free_count < count:
            if self.remnants.drop_one() or self.tree.evict_one():
                self.counters.evicted_pages += 1
            elif not self.drafts.give_way():
                return False
        return True

    def _retract(self, req: Req) -> None:
        """Take the pages of `req`: now, or when its last step retires. It starts over from its tokens later."""
        req.retracting = True
        req.retractions += 1
        self.counters.retractions += 1
        self._settle(req)

    def _enter_tree(self, req: Req) -> None:
        """Every page of `req` that is full and landed becomes findable by others of its tenant."""
        if req.lease is None or not req.lease.node.attached:
            return  # no cache, or what it builds on was condemned
        size = self.page_size
        known = min(req.landed_len, len(req.tokens))
        while (req.lease.depth + 1) * size <= known:
            depth = req.lease.depth
            self.tree.extend(req.lease, tuple(req.keys(depth * size, (depth + 1) * size)), req.pages[depth])

    # -- admission ---------------------------------------------------------------------------------------------

    def _hold_prefix(self, req: Req) -> None:
        """What the cache has of a promised request was counted on: it is held until its turn."""
        if hit := self._find_prefix(req):
            self._share_hit(req, hit)
        else:
            self._drop_lease(req)

    def _share_hit(self, req: Req, hit: int) -> None:
        """`req`, without pages of its own, has the first `hit` pages of its lease."""
        assert req.lease is not None and not req.pages
        for page in req.lease.pages():
            self.pool.share(page, req.salt)
            req.pages.append(page)
        req.computed_len = req.landed_len = hit * self.page_size

    def _find_prefix(self, req: Req) -> int:
        """Lease what the cache holds of a request that has no pages of its own; the number of pages found."""
        if req.pages or req.copy_from is not None or not self.prefix_cache:
            return 0
        if req.lease is None:
            keys = req.keys(0, len(req.tokens))
            req.lease = self.tree.match(req.salt, keys, req.reusable_len // self.page_size)
        return req.lease.depth

    # -- ends --------------------------------------------------------------------------------------------------

    def _land(self, req: Req, landed: int, token: int | None, events: list[Retired]) -> None:
        """A row of `req` has landed: its KV reaches `landed`, and `token` was sampled (None: it samples none)."""
        req.inflight -= 1
        if not req.spoilt:
            req.landed_len = landed
            self.gallery.passed(req)
        if token is not None:
            event = self._take_token(req, token)
            if event is not None:
                events.append(event)
        self._enter_tree(req)
        self._settle(req)

    def _take_token(self, req: Req, token: int) -> Retired | None:
        """Append what landed. None if the request had ended before: its neighbours' steps went on with it, the
        token is real content of its KV, but nobody is told."""
        ended = req.finish is not None
        if token == NON_FINITE and not req.spoilt:
            distrust(req, self.gallery, self.tree)
        if req.spoilt:  # then what later rows sampled came after a token that does not exist
            req.total_len -= 1
            req.computed_len = min(req.computed_len, req.total_len)
            if ended:
                return None
            req.finish = FinishReason.ERROR
            return Retired(req, None, req.finish)
        req.tokens.append(token)
        if ended:
            return None
        if req.grammar is not None:
            req.grammar.accept(token)
        if token in req.params.stop_ids and req.output_len > req.params.min_tokens:
            req.finish = FinishReason.STOP
        elif len(req.tokens) == req.max_len:
            req.finish = FinishReason.LENGTH
        return Retired(req, token, req.finish)

    def _settle(self, req: Req) -> None:
        """Act on the marks of `req`, if no launched step holds it. The only reader of marks."""
        if req.inflight:
            return
        if req.finish is not None:
            self._release(req)
            return
        if req.changing is not None:
            self._changing.discard(req.id)
            if become(req, req.changing):
                self._regrants[req.id] = req
        if req.retracting:
            req.retracting = False
            self._give_back(req)
            req.computed_len = req.landed_len = 0
            if req.slot is not None and not req.pausing:
                self._leave_batch(req)
                self._wait_first(req)
        if req.yielding:
            self._stay(req)
            if req.slot is not None and not req.pausing:
                self._leave_batch(req)
                self._wait_first(req)
        if req.pausing and req.phase is not Phase.PAUSED:
            self._leave_batch(req)
            self.waiting.leave(req)
            self.paused[req.id] = req
            req.phase = Phase.PAUSED

    def _release(self, req: Req) -> None:
        """The one place where a request ends and everything it holds goes back."""
        assert req.finish is not None and req.inflight == 0 and req.phase is not Phase.DONE
        self._changing.discard(req.id)
        if req.forkable:
            self.remnants.keep(req, self.page_size)
        self._give_back(req)
        self._stay(req)
        self._leave_batch(req)
        self.waiting.leave(req)
        self.paused.pop(req.id, None)
        self.shares.depart(req)
        self._grammars -= req.grammar is not None
        self._probing -= req.logprobs is not None
        self.promises -= req.promise is not None
        req.phase = Phase.DONE

    def _give_back(self, req: Req) -> None:
        """Pages and lease. What of it is in the tree stays cached there."""
        for page in req.pages:
            self.pool.drop(page)
        req.pages.clear()
        if req.copy_from is not None:
            self._sources.drop(req.copy_from)
            req.copy_from = None
        self._drop_lease(req)

    def _drop_lease(self, req: Req) -> None:
        if req.lease is not None:
            self.tree.release(req.lease)
            req.lease = None

    def _stay(self, req: Req) -> None:
        """It need not make way any more."""
        self._yielding -= req.yielding
        req.yielding = False

    def _leave_batch(self, req: Req) -> None:
        if req.slot is not None:
            self.shares.settle(req)
            self.gallery.leave(req)
            self.slots.give_back(req.slot)
            self._regrants.pop(req.id, None)
            req.slot = None
            del self.running[req.id]
            self._chosen, self._columns = [], ([], array("i"))

    def _wait_first(self, req: Req) -> None:
        req.phase = Phase.WAITING
        self.waiting.rejoin(req)

    def reqs(self) -> Iterator[Req]:
        """Every live request."""
        for held in (self.waiting, self.running, self.paused):
            yield from held.values()

    def check(self) -> None:
        """Raise AssertionError if any invariant of requests, pages, slots, tree and flight is broken."""
        audit(self, self._flight, self._sources.counts)
