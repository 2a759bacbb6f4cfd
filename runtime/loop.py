"""The only place where the event loop meets the device: plan, launch, retire, feed streams, flush sockets.

Everything here runs on the event loop's thread. The engine runs elsewhere and answers with a future; its
landing is the only thing that crosses threads, through `call_soon_threadsafe`.

One turn: retire what has landed, launch what can be launched, and only then turn tokens into text and write.
The device works on step N+1 while the readers of step N are served.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from headrace.runtime.encode_pace import EncodePace
from headrace.runtime.foresight import Foresight
from headrace.runtime.logprobs import TokenLogprob
from headrace.runtime.pace import Pace, pairs_of
from headrace.runtime.parsers.pieces import TextPiece
from headrace.runtime.plan import StepPlan, StepResult, row_price
from headrace.runtime.refusal import Refusal
from headrace.runtime.request import Change, FinishReason, Req
from headrace.runtime.scheduler import Retired, Scheduler
from headrace.runtime.stream import Entry, TokenStream
from headrace.runtime.tally import Tally
from headrace.runtime.telemetry import StepMeters, micros

if TYPE_CHECKING:
    from headrace.runtime.interface import TextCutter, TextSplitter


log = logging.getLogger("headrace.loop")


class Engine(Protocol):
    """What runs a step. `launch` returns at once; steps land in the order they were launched.

    depth: how many steps it likes to have in flight. An engine with threads of its own resolves its futures itself
    and has no `poll`; one without resolves them inside `poll`, which never waits and is True if a step landed.
    page_bytes: of a KV page. pace: what bounds the prompt tokens of a step; None: the scheduler's own limit alone.
    bucket: rows that the step launched last is padded to. replays: steps launched as captured graphs so far.
    masks: it keeps to the grammars of a plan; else no request may have one."""

    @property
    def masks(self) -> bool: ...

    @property
    def depth(self) -> int: ...

    @property
    def poll(self) -> Callable[[], bool] | None: ...

    @property
    def pace(self) -> Pace | None: ...

    @property
    def page_bytes(self) -> int: ...

    @property
    def bucket(self) -> int: ...

    @property
    def replays(self) -> int: ...

    def launch(self, plan: StepPlan) -> Future[StepResult]: ...

    def aside(self, work: Callable[[], None]) -> Future[None]:
        """Run `work` where the steps run, behind those that were launched."""
        ...

    def close(self) -> None: ...


@dataclass(slots=True, eq=False)
class Generation:
    """One live request with its reader: ids on one side, text on the other. splitter: what types the text; None
    where all of it is the answer."""

    req: Req
    stream: TokenStream
    cutter: TextCutter
    splitter: TextSplitter | None = None
    deadline: asyncio.TimerHandle | None = None
    itl: float | None = None  # seconds between two tokens that it was promised
    slow: bool = False  # that was broken


@dataclass(slots=True)
class StepFacts:
    """One landed step, for metrics: its seconds, rounded as they are told to readers, and rows and prompt tokens in
    it. It begins when it was launched or, behind another one, when that one landed.

    gap: seconds in which the device had nothing to do before this step because the host was not ready with it. lag:
    the longest time between two looks at the device while it ran: so late its landing may have been seen."""

    seconds: float
    decode_rows: int
    prefill_rows: int
    prefill_tokens: int
    gap: float
    lag: float


def _ignore_step(facts: StepFacts) -> None:
    pass


def _ignore_stream(stream: TokenStream) -> None:
    pass


def _ignore_gap(seconds: float, streams: int) -> None:
    pass


def _nothing() -> None:
    pass


class StepLoop:
    """Drives Scheduler and Engine, with at most `engine.depth` steps launched and not retired. encodes: what a
    picture's encode takes; None: a prompt token for each row. context: tokens of the longest request; None: as many
    as there are pages for.

    Hooks, set once before the first request: `on_flush` after the tokens of a step were handed to their
    streams; `on_step` for each landed step; `on_gap` for the seconds between two tokens, and how many streams had
    just these; `on_end` for each stream that ended here; `on_idle` when the last one has. `on_fault` when the
    engine failed or an assertion of ours did: every stream is told, and the loop stops for good (neither is
    repaired here).
    """

    def __init__(
        self,
        scheduler: Scheduler,
        engine: Engine,
        *,
        request_limit: float = 1800.0,
        encodes: EncodePace | None = None,
        context: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert engine.depth >= 1
        self.scheduler = scheduler
        self.engine = engine
        self.request_limit = request_limit
        self.encodes = encodes
        self.clock = clock
        self.on_flush: Callable[[], None] = _nothing
        self.on_step: Callable[[StepFacts], None] = _ignore_step
        self.on_gap: Callable[[float, int], None] = _ignore_gap
        self.on_end: Callable[[TokenStream], None] = _ignore_stream
        self.on_idle: Callable[[], None] = _nothing
        self.on_fault: Callable[[BaseException], None] | None = None
        self.fault: BaseException | None = None
        self.foresight = Foresight(scheduler, engine.pace, engine.depth, context)
        self.tally = Tally()
        self.meters = StepMeters()
        self._changes: list[tuple[Generation, Callable[[int | None], None]]] = []  # asked for, not told yet
        self.holds = 0  # how often a generation left the batch because its reader had fallen behind
        self.progress_at = clock()  # when a step was last launched or landed
        self._landed_at = self.progress_at
        self._looked_at = self.progress_at
        self._resting = True  # no step is in flight because nothing was to be done
        self._gap = self._lag = 0.0  # since the last step that landed
        self._told_at = -math.inf  # when tokens were last handed to readers
        self._loop: asyncio.AbstractEventLoop | None = None
        self._flight: deque[tuple[StepPlan, Future[StepResult], float]] = deque()
        self._live: dict[int, Generation] = {}
        self._scheduled = False
        self._polling = False
        self._empty = asyncio.Event()
        self._empty.set()

    # -- requests ----------------------------------------------------------------------------------------------

    @property
    def live(self) -> int:
        """Generations that have not ended."""
        return len(self._live)

    @property
    def flight(self) -> int:
        """Steps launched and not retired."""
        return len(self._flight)

    def join(self, generation: Generation) -> None:
        """The generation takes part from the next step. Raises Refusal as `Scheduler.add` does, and if what it
        wants of its time cannot be promised."""
        if self.fault is not None:
            raise Refusal("server_error", "the engine has stopped after a fault")
        req, now = generation.req, self.clock()
        try:
            opened = generation.stream.times.opened
            req.promise = self.foresight.promise(req, opened, now, self._ahead(now))
        except Refusal:
            self.tally.refused[req.claim.targets.rank] += 1
            raise
        generation.itl = req.claim.targets.itl
        self.scheduler.add(req)
        self._live[generation.req.id] = generation
        self._empty.clear()
        generation.stream.times.joined = self.clock()
        self.meter(generation)
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        generation.deadline = self._loop.call_later(self.request_limit, self._expire, generation)
        self._schedule()

    def meter(self, generation: Generation) -> None:
        """The steps of the generation are told to the meter of its stream, if that has one."""
        if generation.stream.meter is not None:
            self.meters.join(generation.stream.meter, generation.req)

    def cancel(self, generation: Generation, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """The generation is in no plan from now on; its stream ends here and now."""
        if generation.req.finish is None:
            self.scheduler.cancel(generation.req, reason)
        self._end(generation, reason)
        self._schedule()

    def hold(self, generation: Generation) -> None:
        """The generation leaves the batch until its reader has room again. Nothing of it is lost."""
        if generation.stream.wake is None and generation.req.finish is None:
            generation.stream.wake = partial(self._wake_reader, generation)
            self.holds += 1
            self.scheduler.pause(generation.req)
            generation.itl = None  # how fast its tokens come is up to its reader from here on

    def change(self, generation: Generation, change: Change, told: Callable[[int | None], None]) -> None:
        """The generation goes on as `change` says. `told(index)`, once, when it has taken effect: from output token
        `index` on; or `told(None)` if the generation ended before."""
        self.scheduler.change(generation.req, change)
        self._changes.append((generation, told))
        self._schedule()

    def stir(self) -> None:
        """A draft has something to compute: a step may be planned now."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        if self.fault is None:
            self._schedule()

    def _tell_changes(self) -> None:
        waiting, self._changes = self._changes, []
        for generation, told in waiting:
            req = generation.req
            if req.changing is not None and req.finish is None:
                self._changes.append((generation, told))
            elif req.changing is not None:
                told(None)
            else:
                generation.stream.params = req.params
                told(req.changed_at - generation.stream.prompt_tokens)

    def cancel_all(self) -> None:
        for generation in list(self._live.values()):
            self.cancel(generation)

    async def emptied(self) -> None:
        """Returns when no generation is live."""
        await self._empty.wait()

    @property
    def stalled_for(self) -> float:
        """Seconds since the last sign of life while a step is in flight; 0 when idle."""
        return self.clock() - self.progress_at if self._flight else 0.0

    # -- turns -------------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        """One turn soon. Several reasons within one loop iteration make one turn."""
        if not self._scheduled and self._loop is not None:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _landed(self, future: Future[StepResult]) -> None:
        # Runs in the engine's thread, or inside `launch` when the engine is synchronous. The loop may be closed
        # already when the server stops with a step in flight: then nobody waits for the result.
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._turn)

    def _look(self) -> None:
        """Ask a polled engine again and again while a step is in flight; sockets are served in between."""
        assert self._loop is not None and self.engine.poll is not None
        now = self.clock()
        self._lag = max(self._lag, now - self._looked_at)
        self._looked_at = now
        if self.engine.poll():
            self._turn()
        self._polling = bool(self._flight) and self.fault is None
        if self._polling:
            self._loop.call_soon(self._look)

    def _turn(self) -> None:
        self._scheduled = False
        if self.fault is not None:
            return
        try:
            self._retire_launch_tell()
        except Exception as error:
            # Without this the event loop would log it and go on, and every stream would hang for ever.
            self.fail(error)

    def _retire_launch_tell(self) -> None:
        events: list[Retired] = []
        metered = self.meters.on
        landed: list[tuple[StepPlan, float, float, list[Retired]]] = []  # where somebody asked for each step
        while self._flight and self._flight[0][1].done():
            plan, future, launched = self._flight.popleft()
            result = future.result()
            now = self.clock()
            self.progress_at = now
            typed = self.scheduler.drafts.alone_in(plan)
            retired = self.scheduler.retire(plan, result)
            began = max(launched, self._landed_at)
            if metered:
                landed.append((plan, began, now, retired))
            else:
                events += retired
            rows, tokens = len(plan.decode), plan.prefill_tokens
            seconds = (micros(now) - micros(began)) / 1e6
            self.on_step(StepFacts(seconds, rows, len(plan.prefill), tokens, self._gap, self._lag))
            self._gap = self._lag = 0.0
            if self.engine.pace is not None and not plan.encodes:
                pairs = sum([pairs_of(row.count, row.start) for row in plan.prefill])
                self.engine.pace.observe(rows, tokens, pairs, now - began)
            if self.encodes is not None:
                self.encodes.observe(plan, now - began)
            if typed:
                self.scheduler.drafts.took(tokens, now - began)
            self._landed_at = now
        self._launch()
        if events:
            self._tell(events)
        for step in landed:
            self._tell_metered(*step)
        if metered:
            self.meters.look(self.scheduler)
        if self._changes:
            self._tell_changes()
        self.on_flush()
        if not self._flight:
            # Telling may have ended or paused requests and so made room that the launch above did not see.
            self._launch()
            self._resting = not self._flight
            if self._resting and not self._live:
                self.on_idle()

    def _ahead(self, now: float) -> float:
        """Seconds until the steps in flight will have landed, about."""
        pace = self.engine.pace
        if pace is None or not self._flight:
            return 0.0
        taken = 0.0
        for plan, _, _ in self._flight:
            taken += pace.alone(len(plan.decode))
            taken += pace.added(plan.prefill_tokens, plan.prefill[0].start) if plan.prefill else 0.0
        return max(0.0, taken - (now - max(self._flight[0][2], self._landed_at)))

    def _launch(self) -> None:
        while len(self._flight) < self.engine.depth:
            allowed = self.foresight.allowance(self.clock())
            price = row_price if self.encodes is None else self.encodes.price
            plan = self.scheduler.plan(
                allowed.budget, price, most_rows=allowed.most_rows, hurry=allowed.hurry
            )
            if plan is None:
                return
            now = self.clock()
            self.progress_at = now
            for grant in plan.grants:
                self._admitted(grant.req_id, now)
            replays = self.engine.replays if self.meters.on else 0
            future = self.engine.launch(plan)
            if self.meters.on:
                self.meters.launched(plan, self.engine.bucket, self.engine.replays > replays, now)
            if not self._flight and not self._resting:
                self._gap += self.clock() - self._landed_at
            self._resting = False
            self._flight.append((plan, future, now))
            if self.engine.poll is None:
                future.add_done_callback(self._landed)
            elif not self._polling:
                assert self._loop is not None
                self._polling = True
                self._looked_at = self.clock()
                self._loop.call_soon(self._look)

    def _admitted(self, req_id: int, now: float) -> None:
        if req_id in self.scheduler.drafts.held:
            return
        generation = self._live.get(req_id)
        assert generation is not None, "a slot was granted to a request that has ended"
        stream = generation.stream
        if stream.times.admitted is None:
            stream.times.admitted = now
            stream.cached_tokens = min(generation.req.cached_len, stream.prompt_tokens)

    def _tell_metered(self, plan: StepPlan, began: float, now: float, events: list[Retired]) -> None:
        """A step, then its tokens: one that ends here is in no later step of this turn."""
        self.meters.landed(plan, began, now)
        if events:
            self._tell(events)

    def _tell(self, events: list[Retired]) -> None:
        """Hand tokens to their readers, as text. What is told in one turn is told at one time."""
        before, now = self._told_at, self.clock()
        self._told_at = now
        steady = 0  # streams that had their last token in the turn before: all with the same gap
        live = self._live
        for event in events:
            generation = live.get(event.req.id)
            if generation is None:
                continue  # cancelled from inside this turn, by the reader of an earlier event
            token, stream, cutter = event.token, generation.stream, generation.cutter
            if token is None:
                self._end(generation, FinishReason.ERROR, _no_token(event.req))
                continue
            times = stream.times
            last, times.last_token = times.last_token, now
            if last == before:
                steady += 1
            elif last is None:
                times.first_token = now
            else:
                self.on_gap(now - last, 1)
            if generation.itl is not None and last is not None and now - last > generation.itl:
                generation.slow = True
            try:
                # The token that stops an answer counts, but its text is no part of it.
                stopped = event.finish is FinishReason.STOP
                text = "" if stopped else cutter.push(token)
                splitter = generation.splitter
                if splitter is None:
                    stream.push(Entry(token, text, None, event.logprob))
                else:
                    stream.push(_typed(stream, event, text, splitter))
                if splitter is not None and splitter.plain:
                    splitter = generation.splitter = None
                if event.finish is not None or cutter.matched is not None:
                    self._conclude(generation, event)
                elif splitter is not None and splitter.over:
                    self.scheduler.cancel(event.req, FinishReason.STOP)
                    self._end(generation, FinishReason.STOP)
                elif stream.full:
                    self.hold(generation)
            except Exception:
                # Whatever a request's tokens do to its own text stays that request's error.
                self._broken_text(event)
        if steady:
            self.on_gap(now - before, steady)

    def _conclude(self, generation: Generation, event: Retired) -> None:
        """The last token of an answer was pushed."""
        stream, matched = generation.stream, generation.cutter.matched
        if event.finish is FinishReason.STOP:
            stream.matched_stop = event.token
            self._end(generation, FinishReason.STOP)
        elif matched is not None:
            stream.matched_stop = matched
            self.scheduler.cancel(event.req, FinishReason.STOP)
            self._end(generation, FinishReason.STOP)
        else:
            assert event.finish is not None
            self._end(generation, event.finish)

    def _broken_text(self, event: Retired) -> None:
        log.exception("the text of a request could not be told; that request ends")
        generation = self._live.get(event.req.id)
        if generation is not None:
            self.scheduler.cancel(event.req, FinishReason.ERROR)
            self._end(generation, FinishReason.ERROR, Refusal("server_error", "the answer could not be told"))

    def _wake_reader(self, generation: Generation, stream: TokenStream) -> None:
        """The reader of a full stream has caught up."""
        stream.wake = None
        if generation.req.pausing:
            self.scheduler.resume(generation.req)
            self._schedule()

    def _expire(self, generation: Generation) -> None:
        self.scheduler.cancel(generation.req, FinishReason.ERROR)
        seconds = f"{self.request_limit:g}"
        self._end(
            generation,
            FinishReason.ERROR,
            Refusal("timeout", f"the request ran longer than {seconds} seconds"),
        )
        self._schedule()

    def _end(self, generation: Generation, finish: FinishReason, error: Refusal | None = None) -> None:
        """The stream ends and the generation is forgotten; the scheduler frees the rest on its own time."""
        if generation.req.id not in self._live:
            return
        told = finish in (FinishReason.STOP, FinishReason.LENGTH)
        tail = generation.cutter.finish() if told else ""  # may raise: then this generation is still live
        pieces = None
        if generation.splitter is not None:
            pieces = [*generation.splitter.push(tail), *generation.splitter.finish()] if told else []
        del self._live[generation.req.id]
        if generation.deadline is not None:
            generation.deadline.cancel()
        stream = generation.stream
        self.meters.leave(generation.req.id)
        stream.times.ended = self.clock()
        self.tally.ended(generation.req.claim.targets, stream.times, finish, generation.slow)
        stream.end(finish, tail, error, pieces)
        self.on_end(stream)
        if not self._live:
            self._empty.set()

    def fail(self, error: BaseException) -> None:
        """The device or the books are broken: every stream is told, and nothing more is promised."""
        self.fault = error
        refusal = Refusal("server_error", "the engine stopped after a fault; the server restarts")
        for generation in list(self._live.values()):
            self._end(generation, FinishReason.ERROR, refusal)
        self.on_flush()
        if self.on_fault is not None:
            self.on_fault(error)


def _no_token(req: Req) -> Refusal:
    """Why no token could be chosen for `req`."""
    if req.grammar is not None and (trouble := req.grammar.trouble):
        return Refusal("server_error", f"the answer's grammar cannot go on: {trouble}")
    return Refusal("server_error", "the model produced no finite number for this request")


def retell(generation: Generation, token: int, text: str, logprob: TokenLogprob | None) -> None:
    """The reader of a generation that is about to begin is told `token` as if it had been generated."""
    stream, splitter = generation.stream, generation.splitter
    if splitter is None:
        stream.push(Entry(token, text, None, logprob))
        return
    stream.push(_typed(stream, Retired(generation.req, token, None, logprob), text, splitter))
    if splitter.plain:
        generation.splitter = None


def _typed(stream: TokenStream, event: Retired, text: str, splitter: TextSplitter) -> Entry:
    """The entry of a token whose text is split, counted as thought if any of it may be."""
    assert event.token is not None
    thinking = splitter.thinking
    pieces = splitter.push(text)
    stream.reasoning_tokens += thinking or splitter.thinking
    if len(pieces) == 1 and pieces[0] == TextPiece(text):
        return Entry(
            event.token, text, None, event.logprob
        )  # told as it is: the way that costs readers least
    return Entry(event.token, text, pieces, event.logprob)
