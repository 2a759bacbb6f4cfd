"""Responses from their first event to their last, whoever listens. Knows streams, turns and tapes; knows no wire.

Each has one owner (a socket's lane, an HTTP exchange, or nobody, in the background) for whom it is advanced, and
any number of followers that read its tape. What happens at its end happens here, once: it is stored, its parent
let go of, its followers told.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Raw

from headrace.runtime.interface import FinishReason, Message, Runtime, Tenant
from headrace.server.conversation import Conversations, Turn
from headrace.server.faces.branches import BranchCounts
from headrace.server.faces.pinned import PinnedResponses, lifetime
from headrace.server.faces.responses import ResponseRun
from headrace.server.faces.tape import Tape
from headrace.server.protocol import response_events as ev
from headrace.server.protocol.codec import encode
from headrace.server.session import Latest


class RunningResponse:
    """One response under way. `parent` is held until its end; `turn` is set at its end, unless it failed, and held
    for the owner, who gives it back with `Conversations.release`."""

    def __init__(
        self,
        running: Running,
        run: ResponseRun,
        tenant: Tenant,
        parent: Turn | None,
        added: tuple[Message, ...],
        items: list[Raw],
        *,
        background: bool = False,
    ) -> None:
        self.run = run
        self.tenant = tenant
        self.parent = parent
        self.added = added
        self.background = background
        self.turn: Turn | None = None
        self.cancelled = False  # a request has asked for its end
        self.stored = run.request.store is not False
        # Who is not stored cannot be followed: nobody else knows the id, and nothing is kept for those who do.
        self.tape = Tape() if self.stored else None
        self.followers: dict[object, Callable[[], None]] = {}
        self._running = running
        self.items = items
        self._untaken: list[str] = []
        self._settled = False
        if parent is not None:
            running.store.hold(parent)

    @property
    def over(self) -> bool:
        """The last event was said, or there will never be any."""
        return self.run.done or self.run.refusal is not None

    def take(self) -> list[str]:
        """For the owner: every event since the last call, as JSON."""
        said = self._say()
        if self._untaken:
            said, self._untaken = self._untaken + said, []
        return said

    def advance(self) -> None:
        """For everybody else: what the stream holds is said now, also if the owner does not read."""
        said = self._say()
        if not self.background:
            self._untaken += said

    def say(self, event: ev.SteerAccepted | ev.SteerFailed) -> None:
        """An event of this response that does not come from its stream, numbered by `run.next_number()`."""
        raw = encode(event)
        if self.tape is not None:
            self.tape.event(event.sequence_number, raw)
        self._untaken.append(raw.decode())
        self._tell_followers()

    @property
    def store(self) -> Conversations:
        """Where it is kept at its end, and who counts its turns."""
        return self._running.store

    def pause(self) -> None:
        """The request leaves the batch until its reader is back (`TokenStream.attach`)."""
        self._running.runtime.hold(self.run.stream)

    @property
    def untaken(self) -> list[str]:
        """What was said beside the owner's reading, and waits to be taken."""
        return self._untaken

    def reread(self) -> None:
        """The owner reads what was said from the tape: nothing of it waits to be taken."""
        self._untaken.clear()

    def cancel(self) -> None:
        """Stop the generation, because a request asks for that, and say how it ended."""
        self.cancelled = True
        self.run.stream.limit = None  # whatever credit its reader had left: the end is told
        if self.run.stream.finish is None:
            self._running.runtime.cancel(self.run.stream)
        self.advance()

    def abandon(self) -> None:
        """The owner is gone: a response that has not ended ends as cancelled, and is not stored."""
        if not self._settled:
            self.stored = False
            self.cancel()
            assert self._settled, "a stream that has ended is told to its end"
        self.release()

    def release(self) -> None:
        """Nobody continues from here on the owner's account."""
        turn, self.turn = self.turn, None
        if turn is not None:
            self._running.store.release(turn)

    def _say(self) -> list[str]:
        run, tape = self.run, self.tape
        delta = run.next_delta()
        if delta is not None:
            if tape is not None:
                tape.delta(run.delta_template, run.last_text)
            if self.followers:
                self._tell_followers()
            return [delta]
        said = []
        for event in run.events():
            raw = encode(event)
            if tape is not None:
                tape.event(event.sequence_number, raw)
            said.append(raw.decode())
        if not self._settled and (run.done or run.refusal is not None):
            self._settle()
        if said:
            self._tell_followers()
        return said

    def _tell_followers(self) -> None:
        for follower in self.followers.values():
            follower()

    def _settle(self) -> None:
        self._settled = True
        store, run = self._running.store, self.run
        self._running.forget(self)
        failed = run.stream.finish is FinishReason.ERROR
        if run.done and (self.background or not failed):
            assert run.final is not None
            self.turn = store.add_turn(self.parent, self.added + run.answer)
            options = run.request.prompt_cache_options
            if options is not None and (ttl := lifetime(options.ttl)) is not None:
                before = run.request.previous_response_id
                self._running.pins.outlast(self.tenant, run.id, before, run.stream, ttl)
            if self.stored:
                assert self.tape is not None
                store.put(
                    self.tenant,
                    run.id,
                    encode(run.final),
                    self.turn,
                    items=self.items,
                    tape=self.tape.pack(),
                )
        parent, self.parent = self.parent, None
        if parent is not None:
            store.release(parent)


class Running:
    """Every response under way, by tenant and id."""

    def __init__(self, runtime: Runtime, store: Conversations, pins: PinnedResponses) -> None:
        self.runtime = runtime
        self.store = store
        self.branch_counts = BranchCounts()
        self.pins = pins
        self._by_id: dict[tuple[str, str], RunningResponse] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def begin(
        self,
        run: ResponseRun,
        tenant: Tenant,
        parent: Turn | None,
        added: tuple[Message, ...],
        items: list[Raw],
        *,
        background: bool = False,
    ) -> RunningResponse:
        """`run` is under way from now on, until its last event was said or it is abandoned."""
        response = RunningResponse(self, run, tenant, parent, added, items, background=background)
        self._by_id[tenant.id, run.id] = response
        return response

    def find(self, tenant: Tenant, response_id: str) -> RunningResponse | None:
        """The response, if it is this tenant's and has not ended."""
        return self._by_id.get((tenant.id, response_id))

    def let_go(self, latest: Latest) -> None:
        """A lane remembers this response no more."""
        self.store.release(latest.turn)
        self.runtime.cache.forgo(latest.favour)

    def end(self) -> None:
        """Every stream has ended: what nobody has read yet is told and stored."""
        for response in list(self._by_id.values()):
            response.advance()

    def forget(self, response: RunningResponse) -> None:
        """It has ended."""
        del self._by_id[response.tenant.id, response.run.id]
