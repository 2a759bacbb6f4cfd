"""Where the time of an answer went, step by step, for the readers that ask. Knows plans and clocks; no wire format.

A stream whose reader asked has a `StreamMeter`; every other stream costs nothing. All times are whole microseconds
of one monotonic clock, rounded where they are read, so that what is told adds up exactly: for each stream

    waits + steps of all its rows, and what was left until its end was told, is the time from its opening to then.

A step begins when the device is free for it: when it was launched, or when the one before it landed, if that was
later. What a stream waited between two steps (for a slot, its reader, the host) is the `wait` of the second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from headrace.runtime.forecast import WaitForecast
from headrace.runtime.plan import DecodeRows, PlanRow, StepPlan

if TYPE_CHECKING:
    from headrace.runtime.request import Req
    from headrace.runtime.scheduler import Scheduler
    from headrace.runtime.stream import TokenStream

UNTOLD = 4096  # rows that a board keeps for a reader that does not read; then the oldest steps go untold


def micros(seconds: float) -> int:
    """A time of the clock in whole microseconds."""
    return round(seconds * 1e6)


class StepReport:
    """One landed step. took, in microseconds, ends at `landed`. rows: how many requests computed in it; bucket: the
    rows that it was padded to; replayed: as a captured graph. text: room for whoever tells it, so that it is put
    into words once for all who hear of it."""

    __slots__ = ("bucket", "landed", "number", "prompt_tokens", "replayed", "rows", "text", "took")

    def __init__(
        self, number: int, took: int, landed: int, rows: int, bucket: int, replayed: bool, prompt_tokens: int
    ) -> None:
        self.number = number
        self.took = took
        self.landed = landed
        self.rows = rows
        self.bucket = bucket
        self.replayed = replayed
        self.prompt_tokens = prompt_tokens
        self.text = ""


# One stream in one step: its meter, the index of the output token that landed (None where the step only read its
# prompt), and the microseconds since its step before, or its opening, in which no step of it ran. There is one for
# every token that is told of, so it is no more than a tuple.
StepRow = tuple["StreamMeter", "int | None", int]


class Waiting(NamedTuple):
    """The request waits for its turn: `position` 1 comes next. eta: microseconds, None where nothing is known."""

    position: int
    eta: int | None


class Reading(NamedTuple):
    """So much of `total` tokens of a prompt has been read, `cached` of it without computing. eta: microseconds."""

    done: int
    total: int
    cached: int
    eta: int | None


class StepBoard:
    """What the streams of one reader have to say, in the order in which it happened, until it is told."""

    __slots__ = ("_kept", "_last", "news", "skipped", "told_at", "used")

    def __init__(self) -> None:
        self.news: list[tuple[StepReport, list[StepRow]] | tuple[StreamMeter, Waiting | Reading]] = []
        self.used = False  # there is a stream whose steps are told here
        self.told_at = 0  # microseconds: when the reader is told what stands here now, by who tells it
        self.skipped = 0  # steps that nobody will be told of, because their reader was too slow
        self._last: tuple[StepReport, list[StepRow]] | None = None
        self._kept = 0

    def row(self, report: StepReport, row: StepRow) -> None:
        """One stream's part of a step; the rows of one step come together, whatever lies between them."""
        last = self._last
        if last is not None and last[0] is report:
            last[1].append(row)
        else:
            self._last = last = (report, [row])
            self.news.append(last)
        self._kept += 1
        if self._kept > UNTOLD:
            self._drop()

    def notice(self, meter: StreamMeter, notice: Waiting | Reading) -> None:
        """News of one stream alone."""
        self.news.append((meter, notice))
        self._kept += 1
        if self._kept > UNTOLD:
            self._drop()

    def _drop(self) -> None:
        while self._kept > UNTOLD and len(self.news) > 1:
            told, what = self.news.pop(0)
            self._kept -= len(what) if isinstance(told, StepReport) else 1
            self.skipped += isinstance(told, StepReport)

    def clear(self) -> None:
        """Everything was told."""
        self.news.clear()
        self.skipped = 0
        self._last = None
        self._kept = 0


class StreamMeter:
    """The times of one stream, from the moment its request was read on. board: who hears of each step, None where
    nobody does.

    name, owner: for whoever tells, what the stream is called there and whose it is."""

    __slots__ = (
        "at",
        "base",
        "began",
        "board",
        "cached",
        "clock",
        "first",
        "name",
        "opened",
        "owner",
        "position",
        "recomputed",
        "replays",
        "req",
        "steps",
        "steps_us",
        "stream",
    )

    def __init__(
        self, stream: TokenStream, clock: Callable[[], float], board: StepBoard | None = None
    ) -> None:
        self.stream = stream
        self.clock = clock
        self.board = board
        if board is not None:
            board.used = True
        self.name = ""
        self.owner: Any = None
        times = stream.times
        self.opened = self.at = micros(times.opened if times.read is None else times.read)
        self.began: int | None = None  # its first step
        self.first: int | None = None  # its first token landed
        self.req: Req | None = None
        self.base = 0  # tokens of its prompt
        self.steps = self.steps_us = 0  # after the first token
        self.replays = 0  # of all its steps, those that were captured graphs
        self.recomputed = 0  # tokens computed again after others had taken the pages
        self.cached = 0  # where reading began, after the last admission
        self.position = 0  # in the line, as it was told last

    # -- what happens: called by StepMeters --------------------------------------------------------------------

    def row(self, report: StepReport, index: int | None) -> None:
        """The stream had a row in the step, and output token `index` landed with it, if that is not None."""
        landed, took = report.landed, report.took
        wait = landed - took - self.at
        self.at = landed
        self.replays += report.replayed
        if self.first is not None:
            self.steps += 1
            self.steps_us += took
        else:
            if self.began is None:
                self.began = landed - took
            if index is not None:
                self.first = landed
        if self.board is not None:
            self.board.row(report, (self, index, wait))

    def read(self, report: StepReport, row: PlanRow) -> None:
        """A chunk of its prompt landed; of prompt and answer, where it had lost its pages."""
        assert self.req is not None
        done = row.start + row.count
        again = self.first is not None
        if again:
            self.recomputed += row.count - row.sample
        total = done if row.sample else len(self.req.tokens)
        index = done - self.base if row.sample else None
        self.row(report, index)
        if again and row.sample and row.count == 1:
            return  # its last token was fed again: it had been paused, or has other parameters now
        computed = done - self.cached
        assert self.began is not None
        eta = (self.at - self.began) * (total - done) // computed if computed and not again else None
        self._notice(Reading(done, total, self.cached, 0 if done == total else eta))

    def admitted(self, count: int) -> None:
        """It has a slot, and `count` of its tokens were launched with that."""
        req = self.req
        assert req is not None
        self.cached = req.computed_len - count
        self.position = 0
        if req.computed_len < len(req.tokens):
            self._notice(Reading(self.cached, len(req.tokens), self.cached, None))

    def waits(self, position: int, eta: float | None) -> None:
        """It stands in the line."""
        if position != self.position:
            self.position = position
            self._notice(Waiting(position, None if eta is None else micros(eta)))

    def _notice(self, notice: Waiting | Reading) -> None:
        if self.board is not None:
            self.board.notice(self, notice)
            self.stream.listener(self.stream)

    # -- what it comes to --------------------------------------------------------------------------------------

    def summary(self, ended: float, landed: bool) -> StreamSummary:
        """The whole time of a stream that ended at `ended` seconds, now that this is told. landed: with a step, so
        that what follows the step is no waiting any more."""
        end = self.at if landed else max(self.at, micros(ended))
        now = max(end, micros(self.clock()) if self.board is None else self.board.told_at)
        began = end if self.began is None else self.began
        first = end if self.first is None else self.first
        waited = end - first - self.steps_us
        return StreamSummary(
            queue=began - self.opened,
            prefill=first - began,
            steps=self.steps_us,
            waited=waited,
            send_lag=now - end,
            total=now - self.opened,
        )


class StreamSummary(NamedTuple):
    """Microseconds: total is the sum of the others. queue: until the first step began; prefill: from there to the
    first token; steps: of all steps after that; waited: between those; send_lag: from the last to the reader."""

    queue: int
    prefill: int
    steps: int
    waited: int
    send_lag: int
    total: int


class StepMeters:
    """The meters of all live requests of one loop, by request id. `on`: there is one."""

    def __init__(self) -> None:
        self.forecast = WaitForecast()
        self._meters: dict[int, StreamMeter] = {}
        self._shapes: dict[
            int, tuple[int, bool]
        ] = {}  # of launched steps: bucket, and whether a graph runs it
        self._line: tuple[int, int, int] = (
            0,
            0,
            0,
        )  # admissions, length and end of the line, as looked at last

    @property
    def on(self) -> bool:
        return bool(self._meters)

    def join(self, meter: StreamMeter, req: Req) -> None:
        """The steps of `req` are told to `meter`, until `leave`."""
        meter.req, meter.base = req, meter.stream.prompt_tokens
        self._meters[req.id] = meter

    def leave(self, req_id: int) -> None:
        """The request has ended. Harmless where there is no meter."""
        self._meters.pop(req_id, None)
        if not self._meters:
            self._shapes.clear()
            self.forecast.forget()

    def launched(self, plan: StepPlan, bucket: int, replayed: bool, now: float) -> None:
        """`plan` was launched at `now`."""
        self._shapes[plan.number] = bucket, replayed
        if plan.grants:
            self.forecast.admitted(len(plan.grants), now)
            computed = {row.req_id: row.count for row in plan.prefill}
            for grant in plan.grants:
                if (meter := self._meters.get(grant.req_id)) is not None:
                    meter.admitted(computed.get(grant.req_id, 0))

    def landed(self, plan: StepPlan, began: float, now: float) -> None:
        """`plan`, for which the device was free at `began`, landed at `now`: before its tokens are told."""
        shape = self._shapes.pop(plan.number, None)
        if shape is None:
            return  # launched when nobody asked
        meters, at = self._meters, micros(now)
        took, rows = at - micros(began), len(plan.decode) + len(plan.prefill)
        self.forecast.stepped(took / 1e6)
        report = StepReport(plan.number, took, at, rows, *shape, plan.prefill_tokens)
        for req_id, start in _decoded(plan):
            if (meter := meters.get(req_id)) is not None:
                meter.row(report, start + 1 - meter.base)
        for row in plan.prefill:
            if (meter := meters.get(row.req_id)) is not None:
                meter.read(report, row)
                if not row.sample:
                    meter.stream.listener(meter.stream)  # no token follows that would call it

    def look(self, scheduler: Scheduler) -> None:
        """Tell those who wait where they stand, if that may have changed."""
        waiting = scheduler.waiting
        line = (scheduler.counters.admissions, len(waiting), next(reversed(waiting), 0))
        if line == self._line:
            return
        self._line = line
        left: list[int] | None = None
        for position, req_id in enumerate(waiting.in_order(), 1):
            meter = self._meters.get(req_id)
            if meter is not None and position != meter.position:
                if left is None:
                    left = sorted([req.max_len - len(req.tokens) for req in scheduler.running.values()])
                meter.waits(position, self.forecast.wait(position, left))


def _decoded(plan: StepPlan) -> Iterable[tuple[int, int]]:
    """Request and place of each decode row."""
    decode = plan.decode
    if isinstance(decode, DecodeRows):
        return zip(decode.req_ids, decode.starts, strict=True)
    return [(row.req_id, row.start) for row in decode]
