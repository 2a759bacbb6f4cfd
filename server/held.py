"""Responses that outlive their connection: who may come back to them, and for how long. Knows no wire format.

A response is held from its birth, if its client asked for that, until `linger` seconds after its last connection
went, or twice as long after its end (a connection may be dead for a while before anybody notices). Who holds what:

    attached      the session reads the stream; its events go to the socket and onto the tape
    detached      nobody reads: tokens wait in the stream's ring, and a full ring pauses the request
    let go        the stream is cancelled if it still ran; nothing of it is left here
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

from headrace.runtime.interface import Runtime, Tenant, TokenStream
from headrace.server.tape import Tape

if TYPE_CHECKING:
    from headrace.server.faces.responses_ws import Job

DETACHED_WINDOW = 4096  # tokens that wait for a reader who may come back
ENDED_LIMIT = 16_384  # ended responses whose connection lives; what bounds them in earnest is bytes_limit


class Desk(Protocol):
    """A session that a held response is attached to."""

    def give_up(self, held: Held) -> None:
        """Another connection has taken this response over."""


class Timer(Protocol):
    def cancel(self) -> None: ...


@dataclass(slots=True, eq=False)
class Held:
    """One held response. `key` is what a client must show to come back to it; `told` is the number of the last
    event that its present connection was given."""

    tenant: Tenant
    job: Job
    tape: Tape
    window: int  # of the stream, while somebody reads it
    leaves: str  # what happens when the connection goes: pause, continue
    desk: Desk | None
    key: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    told: int = -1
    settled: bool = False  # its end was told and kept
    timer: Timer | None = None

    @property
    def behind(self) -> bool:
        """Its connection was not yet given all that is on the tape."""
        return self.told + 1 < self.tape.next


class HeldResponses:
    """All held responses of the server, by response id.

    bytes_limit bounds all tapes together, detached_limit the responses that nobody reads. Over a limit, those that
    have ended go first, then those that wait longest for a reader; a tape whose reader is there only gets shorter.
    `settle(held)` ends what nobody can come back to any more."""

    def __init__(
        self,
        runtime: Runtime,
        call_later: Callable[[float, Callable[[], None]], Timer],
        settle: Callable[[Held], None],
        *,
        linger: float = 60.0,
        tape_bytes: int = 1 << 20,
        bytes_limit: int = 256 << 20,
        detached_limit: int = 1024,
        window: int = DETACHED_WINDOW,
    ) -> None:
        self.linger = linger
        self.bytes_limit = bytes_limit
        self.detached_limit = detached_limit
        self.tape_bytes = tape_bytes
        self.window = window
        self.bytes = 0
        self.resumes = 0
        self._runtime = runtime
        self._call_later = call_later
        self._settle = settle
        self._all: dict[str, Held] = {}
        self._ended: dict[str, Held] = {}  # told to their end to a connection that lives; oldest first
        self._alone: dict[str, Held] = {}  # without a connection; oldest first

    def __len__(self) -> int:
        return len(self._all)

    def hold(self, tenant: Tenant, job: Job, leaves: str, desk: Desk) -> Held:
        """`job` may be resumed from now on."""
        stream = job.run.stream
        held = Held(tenant, job, Tape(self.tape_bytes), stream.window, leaves, desk)
        self._all[job.run.id] = held
        return held

    def find(self, tenant: Tenant, response_id: str, key: str | None = None) -> Held | None:
        """The held response of this tenant, if `key` is its key (None: the tenant's word is enough)."""
        held = self._all.get(response_id)
        if held is None or held.tenant.id != tenant.id:
            return None
        if key is not None and not hmac.compare_digest(held.key.encode(), key.encode()):
            return None
        return held

    def record(self, held: Held, added: int) -> None:
        """The tape of `held` has grown by `added` bytes (or shrunk)."""
        self.bytes += added
        while self.bytes > self.bytes_limit and (self._ended or self._alone):
            self.let_go(next(iter((self._ended or self._alone).values())))
        if self.bytes > self.bytes_limit and held.job.run.id in self._all:
            before = held.tape.bytes
            held.tape.trim(before // 2)
            self.bytes += held.tape.bytes - before

    def ended(self, held: Held) -> None:
        """Its connection was told its end; it can be read again for a while."""
        if self._all.get(held.job.run.id) is held:
            self._wait(held, 2 * self.linger, self._ended)

    def detach(self, held: Held) -> None:
        """The connection went: tokens wait in the stream, up to its window, and nobody hears of them."""
        held.desk = None
        stream = held.job.run.stream
        if stream.finish is None:
            stream.attach(_nobody, 1 if held.leaves == "pause" else self.window)
            if held.leaves == "pause":
                self._runtime.hold(stream)
        self._wait(held, self.linger, self._alone)

    def attach(self, held: Held, desk: Desk, listener: Callable[[TokenStream], None], after: int) -> None:
        """`desk` reads it from now on, from behind event `after`; who read it before is told."""
        before, held.desk = held.desk, desk
        if before is not None and before is not desk:
            before.give_up(held)
        self._stay(held)
        held.told = after
        self.resumes += 1
        held.job.run.stream.attach(listener, held.window)

    def let_go(self, held: Held) -> None:
        """Nobody can come back to it any more. A request that still runs for nobody is cancelled."""
        if self._all.pop(held.job.run.id, None) is None:
            return
        self._stay(held)
        self.bytes -= held.tape.bytes
        if held.desk is None:
            self._settle(held)
        held.job.held = None  # no cycle is left for the collector

    def stats(self) -> dict[str, float]:
        """Facts for metrics."""
        return {
            "held_responses": len(self._all),
            "detached_streams": len(self._alone),
            "ring_bytes": self.bytes,
            "stream_resumes": self.resumes,
        }

    def _wait(self, held: Held, seconds: float, among: dict[str, Held]) -> None:
        self._stay(held)
        held.timer = self._call_later(seconds, partial(self.let_go, held))
        among[held.job.run.id] = held
        limit = self.detached_limit if among is self._alone else ENDED_LIMIT
        while len(among) > limit:
            self.let_go(next(iter(among.values())))

    def _stay(self, held: Held) -> None:
        """No clock runs for it."""
        self._ended.pop(held.job.run.id, None)
        self._alone.pop(held.job.run.id, None)
        if held.timer is not None:
            held.timer.cancel()
            held.timer = None


def _nobody(stream: TokenStream) -> None:
    """Who reads a detached stream."""
