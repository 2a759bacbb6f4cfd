"""Responses that outlive their connection: who may come back to them, and for how long. Knows no wire format.

A response is held from its birth, if its client asked for that, until `linger` seconds after its connection went,
or twice as long after its end (a connection may be dead for a while before anybody notices). In between it is

    attached      a socket reads the stream; what it tells goes onto the tape as well (`running.py`)
    alone         nobody reads: tokens wait in the stream's ring, and a full ring pauses the request
    let go        cancelled if it still ran, kept as any other response if it had ended by itself
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

from headrace.runtime.interface import FinishReason, StepBoard, Tenant, TokenStream
from headrace.server.conversation import Turn
from headrace.server.faces.settings import Timer
from headrace.server.faces.tape import Tape

if TYPE_CHECKING:
    from headrace.server.faces.jobs import Job
    from headrace.server.faces.responses import ResponseRun

ALONE_WINDOW = 4096  # tokens that wait for a reader who may come back
EVENT_BYTES = 96  # one event on a tape, about
RESPONSE_BYTES = 4096  # a held response without its tape, about
ENDED_LIMIT = 16_384  # ended responses whose connection lives; what bounds them in earnest is bytes_limit


class Desk(Protocol):
    """A session that a held response is attached to."""

    board: StepBoard  # who hears there of the steps of an answer that asked for that

    def give_up(self, held: Held) -> None:
        """Another connection has taken this response over."""


@dataclass(slots=True, eq=False)
class Held:
    """One held response. `key` is what a client must show to come back to it; `next` is the number of the event
    that its present connection is told next."""

    job: Job
    tape: Tape
    parent: Turn | None  # where it continues from, for its forks; a hold of its own
    window: int  # of the stream, while somebody reads it
    pauses: bool  # it leaves the batch as soon as its connection goes
    desk: Desk | None
    key: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    next: int = 0
    finished: bool = False  # a connection was told its end
    weight: int = 0  # bytes that it is counted with while nobody needs it
    timer: Timer | None = None

    @property
    def id(self) -> str:
        return self.job.response.run.id

    @property
    def behind(self) -> bool:
        """Its connection was not yet told all that is on the tape."""
        return self.next < len(self.tape)

    @property
    def must_replay(self) -> bool:
        """What it was not told comes from the tape, not from what waits to be taken."""
        return self.next + len(self.job.response.untaken) < len(self.tape)


class HeldResponses:
    """All held responses of the server, by response id.

    bytes_limit bounds what is kept for readers who may come back, alone_limit how many responses nobody reads. Over
    a limit, those that have ended go first, then those that wait longest for a reader."""

    def __init__(
        self,
        call_later: Callable[[float, Callable[[], None]], Timer],
        *,
        linger: float = 60.0,
        bytes_limit: int = 256 << 20,
        alone_limit: int = 1024,
        window: int = ALONE_WINDOW,
    ) -> None:
        self.linger = linger
        self.bytes_limit = bytes_limit
        self.alone_limit = alone_limit
        self.window = window
        self.bytes = 0
        self.resumes = 0
        self._call_later = call_later
        self._all: dict[str, Held] = {}
        self._ended: dict[str, Held] = {}  # told to their end to a connection that lives; oldest first
        self._alone: dict[str, Held] = {}  # without a connection; oldest first

    def __len__(self) -> int:
        return len(self._all)

    def hold(self, job: Job, desk: Desk, *, pauses: bool) -> Held:
        """`job` may be resumed from now on: before anything of it was told."""
        response = job.response
        if response.tape is None:
            response.tape = Tape()
        parent = response.parent
        if parent is not None:
            response.store.hold(parent)
        held = Held(job, response.tape, parent, response.run.stream.window, pauses, desk)
        self._all[held.id] = held
        return held

    def find(self, tenant: Tenant, response_id: str) -> Held | None:
        """The held response of this tenant."""
        held = self._all.get(response_id)
        return None if held is None or held.job.response.tenant.id != tenant.id else held

    def unlock(self, tenant: Tenant, response_id: str, key: str) -> Held | None:
        """The held response of this tenant, if `key` is its key."""
        held = self.find(tenant, response_id)
        if held is None or not hmac.compare_digest(held.key.encode(), key.encode()):
            return None
        return held

    def ended(self, held: Held) -> None:
        """Its connection was told its end; it can be read again for a while."""
        if self._all.get(held.id) is held:
            self._wait(held, 2 * self.linger, self._ended, ENDED_LIMIT)

    def detach(self, held: Held) -> None:
        """The connection went: tokens wait in the stream, up to its window, and nobody hears of them."""
        held.desk = None
        response = held.job.response
        stream = response.run.stream
        _tell_steps(response.run, None)
        if stream.finish is None:
            stream.attach(_nobody, 1 if held.pauses else self.window)
            if held.pauses:
                response.pause()
        self._wait(held, self.linger, self._alone, self.alone_limit)

    def attach(self, held: Held, desk: Desk, listener: Callable[[TokenStream], None], start: int) -> None:
        """`desk` reads it from now on, from event `start`; who read it before is told."""
        before, held.desk = held.desk, desk
        if before is not None and before is not desk:
            before.give_up(held)
        self._stay(held)
        held.next = start
        self.resumes += 1
        _tell_steps(held.job.response.run, desk.board)
        held.job.response.run.stream.attach(listener, held.window)

    def let_go(self, held: Held) -> None:
        """Nobody can come back to it any more. What still runs for nobody is cancelled, what had ended by itself is
        kept like any other response."""
        if self._all.pop(held.id, None) is None:
            return
        self._stay(held)
        if held.desk is None and not held.finished:
            response, stream = held.job.response, held.job.response.run.stream
            if stream.finish in (FinishReason.STOP, FinishReason.LENGTH):
                stream.limit = None
                response.advance()
                response.release()
            else:
                response.abandon()
        if held.parent is not None:
            held.job.response.store.release(held.parent)
        held.job.held = None  # no cycle is left for the collector

    def stats(self) -> dict[str, float]:
        """Facts for metrics."""
        return {
            "held_responses": len(self._all),
            "detached_streams": len(self._alone),
            "ring_bytes": self.bytes,
            "stream_resumes": self.resumes,
        }

    def _wait(self, held: Held, seconds: float, among: dict[str, Held], limit: int) -> None:
        self._stay(held)
        held.timer = self._call_later(seconds, partial(self.let_go, held))
        held.weight = RESPONSE_BYTES + len(held.tape) * EVENT_BYTES
        self.bytes += held.weight
        among[held.id] = held
        while len(among) > limit:
            self.let_go(next(iter(among.values())))
        while self.bytes > self.bytes_limit:
            self.let_go(next(iter((self._ended or self._alone).values())))

    def _stay(self, held: Held) -> None:
        """No clock runs for it."""
        self._ended.pop(held.id, None)
        self._alone.pop(held.id, None)
        self.bytes -= held.weight
        held.weight = 0
        if held.timer is not None:
            held.timer.cancel()
            held.timer = None


def _tell_steps(run: ResponseRun, board: StepBoard | None) -> None:
    """`board` hears of the steps from now on; what happened before is told to nobody again."""
    if run.stream.meter is not None and run.request.x_telemetry == "step":
        run.stream.meter.board = board
        if board is not None:
            board.used = True


def _nobody(stream: TokenStream) -> None:
    """Who reads a stream that is alone."""
