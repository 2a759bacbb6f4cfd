"""What must hold beside `Scheduler.check()`: promises to the device, to readers and to tenants (reliability 6.3).

Keeps its own ledger of what was promised and told, and never asks the scheduler what it believes it did.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from headrace.runtime.plan import NON_FINITE, StepPlan, StepResult


@dataclass(slots=True)
class Changing:
    """A change that was asked for: when the request knew `known` tokens and `latest` were to come at most."""

    change: Any
    known: int
    latest: int
    settled: int | None = None  # known tokens when it took effect


@dataclass(slots=True)
class Story:
    """One request as an outsider saw it."""

    req: Any
    prompt: tuple[int, ...]
    params: Any  # those it was born with
    told: list[int] = field(default_factory=list)
    ends: int = 0  # how often it was told that it ended
    end: Any = None  # the FinishReason it was told
    refused: str | None = None
    cancelled: bool = False
    first_start: int | None = None  # where its first row began: the tokens that needed no computing
    next_start: int = 0  # where its next row must begin
    deepest: int = 0  # computed_len at its highest
    chunks: int = 0  # prompt chunks since it was last admitted
    grants: int = 0
    slept: bool = False  # it was paused at some time, so its place in the line is its own story
    kept_pages: bool = False  # it was paused and still had its pages when it was resumed
    lost_pages: bool = False
    parent: Story | None = None
    shared: int = 0  # tokens of KV taken over from the parent at `add`
    copies: bool = False  # it waits with the hold on a part page
    spoilt_by: int | None = None
    changes: list[Changing] = field(default_factory=list)
    draft: bool = False  # it is being typed: its prompt may become another one, and nothing is sampled


@dataclass(slots=True)
class Launched:
    """A plan on its way: which pages it touches for whom, and which of its copies' sources it holds."""

    plan: StepPlan
    pages: dict[int, str]
    sources: frozenset[int]


class Watch:
    Changing = Changing

    def __init__(
        self, core: Any, scheduler: Any, device: Any, cells: Any, seen: Counter[str], order: Any
    ) -> None:
        self.core = core
        self.cells = cells  # the module that says what a cell holds
        self.scheduler = scheduler
        self.device = device
        self.seen = seen
        self.order = order
        self.stories: dict[int, Story] = {}
        self.flight: deque[Launched] = deque()
        self.tables: dict[int, list[int]] = {}
        self.holder: dict[int, int] = {}  # slot -> req_id, as granted
        self.owned: list[bool] = [False] * scheduler.pool.count
        self.sound: set[Any] = set()  # nodes of the tree whose content was read and found right
        self.bad: set[int] = set()  # pages of requests that are known to have met a NaN, until they are free
        self.failed = False  # somebody met one
        self.rows_sampled = self.rows_fed = self.single_fed = self.copied = self.granted = 0
        self.retractions = 0

    # -- after every operation ---------------------------------------------------------------------------------

    def settle(self) -> None:
        """After any operation: the scheduler's own check, then pages in flight, freed pages, and the tree."""
        scheduler = self.scheduler
        scheduler.check()
        for story in self.stories.values():
            self._changed(story)
        pool = scheduler.pool
        for launched in self.flight:
            for page, salt in launched.pages.items():
                assert pool.refs(page) > 0, f"page {page} was freed under step {launched.plan.number}"
                assert pool.salt(page) == salt, f"page {page} changed its tenant in flight"
            for page in launched.sources:
                assert pool.refs(page) > 0, f"the source {page} of a copy was freed in flight"
        for page, was in enumerate(self.owned):
            now = pool.refs(page) > 0
            if was is not now:
                self.owned[page] = now
                if was:
                    self.device.free(page)
                    self.bad.discard(page)
        fresh = [node for node in scheduler.tree.nodes() if node not in self.sound]
        fresh.sort(key=lambda node: node.depth)
        for node in fresh:
            self._read_node(node)
        for launched in self.flight:
            for row in launched.plan.rows:
                req = self.stories[row.req_id].req
                assert req.slot == row.slot, f"slot {row.slot} went back under a launched step"

    def _changed(self, story: Story) -> None:
        """A change takes effect behind the tokens that were in flight, at the latest, and not before it was asked
        for."""
        req = story.req
        if not story.changes or story.changes[-1].settled is not None or story.refused is not None:
            return
        asked = story.changes[-1]
        if req.finish is None and req.changing is not None:
            assert len(req.tokens) <= asked.latest, "it runs on as if nothing had been asked for"
        if req.changing is None and req.finish is None:
            asked.settled = req.changed_at
            assert asked.known <= req.changed_at <= asked.latest, "a change came too late, or too early"
            assert req.changed_at == len(story.prompt) + len(story.told), "a token was told between"
            assert req.params is asked.change.params
            assert req.max_len == max(asked.change.max_len, req.changed_at + 1)

    def _read_node(self, node: Any) -> None:
        """A page in the tree holds what its path says, so it was written by a step that has landed."""
        before = 0 if node.parent.parent is None else self.device.pages[node.parent.page][-1]
        cells = self.device.pages[node.page]
        for cell, token in zip(cells, node.key, strict=True):
            if cell < 0 or before < 0:
                break
            expected = self.cells.cell_after(before, token)
            assert cell == expected, f"page {node.page} in the tree does not hold what its path says"
            before = cell
        else:
            self.sound.add(node)
            return
        # Not known to be sound: a NaN nobody has been told of is all that may excuse it.
        assert min(cells) <= self.cells.SPOILED or before <= self.cells.SPOILED, (
            f"page {node.page} is in the tree before its step landed"
        )

    # -- steps -------------------------------------------------------------------------------------------------

    def planned(self, plan: StepPlan, room: int) -> Launched:
        """A plan was made: it keeps the promises of StepPlan and of the limits."""
        scheduler, pool, size = self.scheduler, self.scheduler.pool, self.scheduler.page_size
        for grant in plan.grants:
            story = self.stories[grant.req_id]
            req = story.req
            assert not any(row.slot == grant.slot for other in self.flight for row in other.plan.rows), (
                f"slot {grant.slot} was granted while a launched step uses it"
            )
            self.holder[grant.slot] = grant.req_id
            self.tables[grant.slot] = list(grant.pages)
            assert grant.params is req.params and grant.prompt_len == len(story.prompt)
            known = story.prompt + tuple(story.told)
            assert grant.history == (known if req.params.needs_history else ()), (
                "a penalty would miss a token"
            )
            story.grants += 1
            story.chunks = 0
            story.next_start = -1
            self.granted += 1
            if not story.draft:
                self._note_grant(story)
        for patch in plan.patches:
            assert patch.index == len(self.tables[patch.slot]), "a patch leaves a hole"
            self.tables[patch.slot].append(patch.page)
        rows = plan.rows
        assert 0 < len(rows) <= scheduler.slots.count, "more rows than slots"
        assert len({row.slot for row in rows}) == len(rows), "two rows share a slot"
        assert len({row.req_id for row in rows}) == len(rows), "two rows for one request"
        assert sum(row.count for row in plan.prefill) <= room, "more prompt tokens than the budget"
        assert all(row.count == 1 and row.sample and row.ids is None for row in plan.decode)
        pages: dict[int, str] = {}
        writes: set[int] = set()
        for row in rows:
            story = self.stories[row.req_id]
            assert story.req.finish is None, f"request {row.req_id} is planned after its end"
            assert not story.req.pausing, f"request {row.req_id} is planned after its pause"
            assert self.holder.get(row.slot) == row.req_id, "a row for a slot that is not its own"
            if story.next_start == -1:
                self.order.granted(story.req, row.start)
            if story.first_start is None:
                story.first_start = row.start
            assert story.next_start in (-1, row.start), "a token is left out or computed twice"
            story.next_start = row.start + row.count
            table = self.tables[row.slot]
            need = -(-story.next_start // size)
            assert need <= len(table), "a row reaches beyond its page table"
            for page in table[:need]:
                assert pool.salt(page) == story.req.salt, f"request {row.req_id} reads another tenant's page"
                pages[page] = story.req.salt
            writes.update(table[row.start // size : need])
            known = story.prompt + tuple(story.told)
            if row.ids is not None:
                assert row.ids == known[row.start : row.start + row.count], "a prompt row with wrong tokens"
                ends = story.next_start == len(known) and not story.draft
                assert row.sample == ends, "a sample from the middle of a prompt, or of what is being typed"
                story.chunks += 1
                self.rows_fed += row.count
                self.single_fed += row.sample and row.count == 1
                if story.chunks == 3:
                    self.seen["chunk split over three steps"] += 1
            self.rows_sampled += row.sample
            assert story.next_start < story.req.max_len, "KV of a token that nobody may ask for"
        self.bad -= writes  # a page is only written afresh: its past is over
        sources = set()
        for copy in plan.copies:
            assert pool.refs(copy.source) > 0 and pool.refs(copy.target) > 0
            assert pool.salt(copy.source) == pool.salt(copy.target), "a copy from one tenant to another"
            sources.add(copy.source)
            self.copied += 1
        launched = Launched(plan, pages, frozenset(sources))
        self.flight.append(launched)
        if len(plan.prefill) >= 2:
            self.seen["two prompts in one step"] += 1
        if plan.decode and plan.prefill:
            self.seen["decode and prompt in one step"] += 1
        if any(writes & other.sources for other in self.flight):
            self.seen["parent writes while its page is copied"] += 1
        return launched

    def _note_grant(self, story: Story) -> None:
        """Where all have one class and one owner (else see classes.py) nobody overtakes: who ran before and was
        sent back comes before those who never ran, and these come in the order of arrival. (Who was paused comes
        back first of all.)"""
        if story.grants == 1 and not story.slept and not self.order.on:
            for other in self.scheduler.waiting:
                ahead = self.stories[other]
                early = ahead.grants > 0 or other < story.req.id
                assert ahead.slept or not early, f"request {story.req.id} overtook {other}"
        if story.grants == 1:
            if story.parent is not None and story.parent.req.phase is self.core.Phase.DONE:
                self.seen["fork admitted after its parent ended"] += 1
        elif story.kept_pages:
            self.seen["resumed with its pages"] += 1
        elif story.lost_pages:
            self.seen["resumed after its pages were taken"] += 1
        story.kept_pages = story.lost_pages = False

    def landed(self, plan: StepPlan, result: StepResult, causes: dict[int, int], events: list[Any]) -> None:
        """A step was retired: who was told what. `causes`: whose NaN each failing row met."""
        launched = self.flight.popleft()
        assert launched.plan is plan
        told = {event.req.id: event for event in events}
        assert len(told) == len(events), "one request was told twice in one step"
        sampled = iter(result.tokens)
        for row in plan.rows:
            if not row.sample:
                continue
            token = next(sampled)
            story = self.stories[row.req_id]
            event = told.pop(row.req_id, None)
            if story.ends:
                assert event is None, f"request {row.req_id} was told a token after its end"
                self.seen["step landed after its request had ended"] += 1
                if token == NON_FINITE:
                    self._distrust(row)
                continue
            assert event is not None, f"a token of request {row.req_id} was swallowed"
            assert event.finish is story.req.finish
            if token == NON_FINITE:
                assert event.token is None and event.finish is self.core.FinishReason.ERROR
                self._distrust(row)
                story.spoilt_by = causes[row.req_id]
                self.seen["non-finite row"] += 1
            else:
                assert event.token == token
                story.told.append(token)
                length = len(story.prompt) + len(story.told)
                assert row.start + row.count == length - 1, "an index was left out or told twice"
            if event.finish is not None:
                story.ends += 1
                story.end = event.finish
                if event.finish is not self.core.FinishReason.ERROR:
                    self.seen[f"ended by {event.finish.value}"] += 1
            assert tuple(story.req.tokens) == story.prompt + tuple(story.told), (
                "tokens differ from those told"
            )
        assert not told, "an event without a sampling row"

    def _distrust(self, row: Any) -> None:
        self.failed = True
        table = self.tables[row.slot][: -(-(row.start + row.count) // self.scheduler.page_size)]
        self.bad.update(page for page in table if self.owned[page])

    # -- decisions ---------------------------------------------------------------------------------------------

    def looked_up(self, req: Any, hit: int) -> None:
        """`req`, without pages of its own, was told that `hit` pages of it are cached: the most there are."""
        size, tokens = self.scheduler.page_size, req.tokens
        limit = (len(tokens) - 1) // size
        best: dict[str, int] = {req.salt: 0}
        for node in self.scheduler.tree.nodes():
            if node.depth != 1:
                continue
            best.setdefault(node.salt, 0)
            step: Any = node
            while step is not None and step.depth <= limit:
                depth = step.depth
                if list(step.key) != tokens[(depth - 1) * size : depth * size]:
                    break
                best[node.salt] = max(best[node.salt], depth)
                onward = tokens[depth * size : (depth + 1) * size]
                step = next((child for child in step.children.values() if list(child.key) == onward), None)
        if self.failed:
            assert hit <= best[req.salt]
        else:
            assert hit == best[req.salt], f"{hit} cached pages were found of {best[req.salt]}"
        if hit:
            assert self.bad.isdisjoint(req.lease.pages()), "the cache offers a page that led to a NaN"
            if hit < limit:
                self.seen["partial prefix hit"] += 1
            elif len(tokens) % size == 0:
                self.seen["hit of all but the last page of a prompt that ends at a page edge"] += 1
            elif len(tokens) % size == 1:
                self.seen["hit that ends at a page edge, one token before the end"] += 1
        if any(pages > hit for salt, pages in best.items() if salt != req.salt):
            self.seen["another tenant has more of this prompt cached"] += 1

    def taken_back(self, victim: Any, forced: bool) -> None:
        """`victim` is about to lose its pages: it is the last one that should (this bounds every wait)."""
        scheduler = self.scheduler
        assert not victim.retracting and victim.finish is None, "what it holds is coming back already"
        self.seen["retraction of a " + victim.phase.value + " request"] += 1
        if forced:
            return
        self.retractions += 1
        self.seen["retraction under pressure"] += 1
        if victim.id not in scheduler.running:
            return
        idle = [
            req for req in scheduler.waiting.values() if req.promise is None or victim.promise is not None
        ]
        idle += scheduler.paused.values()
        assert not any(req.pages or req.copy_from is not None for req in idle if req.rank >= victim.rank), (
            "a running request was retracted while others hold pages and do not move"
        )
        running = scheduler.running.values()
        if victim.promise is not None:
            assert all(req.promise is not None for req in running), "a promise gave its pages up first"
            return
        others = [(req.rank, req.id) for req in running if req.promise is None]
        assert (victim.rank, victim.id) == max(others), "not the youngest of the lowest rank was retracted"

    # -- the end -----------------------------------------------------------------------------------------------

    def counters(self) -> None:
        facts = self.scheduler.counters
        assert facts.decode_tokens_computed == self.rows_sampled
        assert self.rows_fed - self.single_fed <= facts.prefill_tokens_computed <= self.rows_fed
        assert facts.copied_pages == self.copied
        assert facts.admissions + facts.regrants + self.scheduler.drafts.grants == self.granted
