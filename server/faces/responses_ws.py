"""OpenAI Responses over WebSocket: one Session per connection. Knows events and lanes; knows no socket.

A request is refused with an `error` frame as long as no response exists; after `response.created` everything,
failure included, is told by response events. What is in flight when the connection goes is cancelled at once,
unless its client asked to come back to it (`held.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from msgspec import UNSET, Raw, Struct, structs

from headrace.runtime.interface import FinishReason, Message, Refusal, Runtime, Tenant, TokenStream
from headrace.runtime.refusal import shorten
from headrace.server.conversation import Conversations, Turn
from headrace.server.exchange import HttpRequest, Wire
from headrace.server.faces.asks import check_model, response_ask, response_messages
from headrace.server.faces.extension import VERBS, verb_error
from headrace.server.faces.responses import ResponseRun
from headrace.server.faces.settings import FaceSettings
from headrace.server.held import Held, HeldResponses
from headrace.server.protocol import extension as x
from headrace.server.protocol import response_events as ev
from headrace.server.protocol.codec import decode, encode, free_form, split, string
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.responses import ResponseCancel, ResponseCreate, ResponseSteer
from headrace.server.session import Lanes, Latest, WaitingBudget

UNREAD_FRAMES = 1024  # answers that may wait for a peer that does not read
STEER_ECHO = 64 << 10  # bytes of a refused steer's input that are repeated
REPLAY_BYTES = 64 << 10  # of one response told again in one go; then the socket may brake
EXTENDED = "engine.v1"  # the subprotocol that asks for headrace's own events, as ?ext=1 does
# How a connection can go without its client having meant it: no close frame, no pong, no reading, taken over.
ACCIDENTS = frozenset({1006, 1011, 1013, 4001})
_LANE = re.compile(r"\A[A-Za-z0-9_.-]{1,256}\Z")


@dataclass(slots=True, eq=False)
class Job:
    """A response in flight: its lane, where it continues from (held), and what its input adds."""

    lane: str | None
    run: ResponseRun
    parent: Turn | None
    continues_lane: bool  # the parent is this lane's own last response
    added: tuple[Message, ...]
    held: Held | None = None  # who else may come back to it

    @property
    def reports(self) -> bool:
        """Its client knows what x.paused means."""
        request = self.run.request
        assert isinstance(request, ResponseCreate)
        return self.held is not None or request.x_credit is not None or request.x_on_slow is not None


class ResponsesSocket:
    """A Session (exchange.py) that speaks Responses events."""

    def __init__(
        self,
        request: HttpRequest,
        wire: Wire,
        runtime: Runtime,
        settings: FaceSettings,
        store: Conversations,
        budget: WaitingBudget,
        held: HeldResponses,
    ) -> None:
        self.held = held
        self._extended = request.query.get("ext") == "1" or request.subprotocol == EXTENDED
        self._paused: dict[TokenStream, str] = {}  # streams that were reported paused, and why
        self._behind: list[TokenStream] = []  # streams that have more to tell again than one go may carry
        self._wire = wire
        self._runtime = runtime
        self._settings = settings
        self._store = store
        self._default_model = request.query.get("model")
        self._lanes: Lanes[ResponseCreate, Job] = Lanes(settings.lanes, budget)
        self._jobs: dict[TokenStream, Job] = {}
        self._marked: dict[TokenStream, None] = {}
        self._frames: list[str | bytes] = []
        self._expired = False
        self._draining = False
        self._closing = False  # nothing more is read: a close code is on its way, or the peer is gone
        self._timer = settings.call_later(settings.connection_limit, self._expire)

    # -- Session -----------------------------------------------------------------------------------------------

    def received(self, message: str | bytes) -> None:
        """Answer one client event. Whatever is wrong with it becomes one error frame."""
        if self._closing:
            return
        try:
            fields = split(message)
        except WireError as error:
            self._unreadable(error)
            return
        lane: ev.Lane = UNSET
        try:
            match string(fields.get("type")):
                case "response.create":
                    lane = _lane(fields)
                    self._create(message, fields, lane)
                case "response.cancel":
                    self._cancel(message, fields)
                case "response.steer":
                    self._steer(message, fields)
                case verb if verb in VERBS:
                    self._verb(verb, message, fields)
                case None if _absent(fields.get("type")):
                    self._unreadable(WireError("missing_required_parameter", "missing field: type", "type"))
                case None:
                    self._unreadable(WireError("invalid_value", "type: expected a string", "type"))
                case other:
                    what = f"unknown event type: '{other[:200]}'"
                    self._unreadable(WireError("unknown_event", what, "type"))
        except (WireError, Refusal) as error:
            self._refuse(error, lane)

    def render(self) -> list[str | bytes]:
        """All frames that are ready. Ends responses, and starts what waited for them."""
        while self._marked:
            marked, self._marked = self._marked, {}
            for stream in marked:
                if job := self._jobs.get(stream):
                    self._tell(job)
            self._start_waiting()
        self._close_if_over()
        if self._behind:
            for stream in self._behind:
                self.mark(stream)
            self._behind.clear()
        frames, self._frames = self._frames, []
        return frames

    def closed(self, code: int) -> None:
        """Cancel or detach everything in flight and let go of what the connection remembered."""
        self._closing = True
        self._timer.cancel()
        self._lanes.take_waiting()
        for stream, job in self._jobs.items():
            if job.held is not None:
                # What was never told has no key that a client could know.
                if code in ACCIDENTS and job.held.tape.next:
                    self.held.detach(job.held)
                    continue
                settled = job.held.settled
                self.held.let_go(job.held)
                if settled:
                    continue
            if stream.finish is None:
                self._runtime.cancel(stream)
            if job.parent is not None:
                self._store.release(job.parent)
        self._jobs.clear()
        self._marked.clear()
        self._paused.clear()
        for latest in self._lanes.latest.values():
            self._store.release(latest.turn)
        self._lanes.latest.clear()

    def drain(self) -> None:
        """Refuse what waits and what comes; close with 1012 when the running responses have ended."""
        self._draining = True
        if self._extended:
            self.say(x.Goaway(round(self._settings.drain * 1000)))
        for lane, _ in self._lanes.take_waiting():
            self._refuse(_stopping(), UNSET if lane is None else lane)
        self._wire.dirty()  # the close follows the next rendering, also if nothing else happens

    # -- client events -----------------------------------------------------------------------------------------

    def _create(self, message: str | bytes, fields: dict[str, Raw], lane: ev.Lane) -> None:
        settings = self._settings
        decoded = decode(message, ResponseCreate, strict=settings.strict_fields, fields=fields)
        if decoded.ignored:
            settings.on_ignored_fields("responses_ws", len(decoded.ignored))
        if self._draining:
            raise _stopping()
        if self._expired:
            raise WireError(
                "websocket_connection_limit_reached",
                f"This connection is older than {settings.connection_limit / 60:g} minutes; open a new one.",
            )
        name = None if lane is UNSET else lane
        assert name is None or isinstance(name, str)
        if not self._lanes.name(name):
            raise WireError(
                "websocket_stream_limit_reached",
                f"A connection has at most {settings.lanes.named} named streams.",
                "stream_id",
            )
        if not self._lanes.wait(name, decoded.value, len(message)):
            if not self._lanes.budget.fits(len(message)):
                raise WireError(
                    "server_is_overloaded", "Too much is waiting already; try again.", retry_after=1.0
                )
            raise WireError(
                "websocket_stream_limit_reached",
                f"{self._lanes.in_flight} requests run and {self._lanes.waiting} ({self._lanes.waiting_bytes} "
                "bytes) wait on this connection: no more may wait. Ask again when one of them has ended.",
                "stream_id",
                retry_after=1.0,
            )
        self._start_waiting()

    def _cancel(self, message: str | bytes, fields: dict[str, Raw]) -> None:
        # Silent where nothing matches: clients read any frame here as the answer to their next request. An id of
        # the wrong type is no such race but a mistake in the client's program, and silence would hide it there.
        cancel = decode(message, ResponseCancel, fields=fields).value
        if cancel.response_id is not None:
            jobs = [job for job in self._lanes.jobs() if job.run.id == cancel.response_id]
        else:
            running = self._lanes.running(cancel.stream_id)
            jobs = [] if running is None else [running]
        for job in jobs:
            stream = job.run.stream
            if stream.finish is None:
                self._runtime.cancel(stream)
            elif stream.limit is not None:
                # It had ended by itself, and its reader's credit did not reach that far: the end is what is wanted.
                stream.limit = None
                self.mark(stream)

    def _steer(self, message: str | bytes, fields: dict[str, Raw]) -> None:
        code, why = "steering_not_supported", "This server cannot steer a running response yet."
        try:
            decode(message, ResponseSteer, fields=fields)
        except WireError as error:
            code, why = "invalid_input", error.message
        target = string(fields.get("previous_response_id")) or ""
        given = fields.get("input", Raw(b"null"))
        echo = free_form(given, "input") if len(bytes(given)) <= STEER_ECHO else ""
        number = 0
        lane: ev.Lane = UNSET
        for job in self._lanes.jobs():
            if job.run.id == target:
                number, lane = job.run.next_number(), job.run.lane
        self._send(
            ev.SteerFailed(
                number,
                ev.SteerError("invalid_request_error", code, why),
                ev.SteerEcho(target[:256], echo),
                lane,
            )
        )

    # -- the life of a response --------------------------------------------------------------------------------

    def _start_waiting(self) -> None:
        while not self._closing and (waiting := self._lanes.next()) is not None:
            lane, request = waiting
            try:
                self._start(lane, request)
            except (WireError, Refusal) as error:
                if self._is_latest(lane, request.previous_response_id):
                    self._forget(lane)
                self._refuse(error, UNSET if lane is None else lane)

    def _start(self, lane: str | None, request: ResponseCreate) -> None:
        card = self._runtime.card
        check_model(request.model or self._default_model, card, self._settings.model_aliases)
        parent = self._parent(request.previous_response_id)
        added = response_messages(request)
        history = () if parent is None else parent.history()
        ask = response_ask(request, history, added, self._wire.tenant)
        stream = self._runtime.open(ask, self.mark)
        stream.limit = request.x_credit
        if isinstance(request.x_on_slow, x.Buffer):
            stream.window = request.x_on_slow.buffer
        run = ResponseRun(
            request,
            stream,
            created=self._settings.now(),
            model=card.id,
            lane=UNSET if lane is None else lane,
        )
        if parent is not None:
            self._store.hold(parent)
        job = Job(lane, run, parent, self._is_latest(lane, request.previous_response_id), added)
        leaves = request.x_on_disconnect or ("continue" if self._extended else "cancel")
        if leaves != "cancel":
            job.held = self.held.hold(self._wire.tenant, job, leaves, self)
        self._lanes.start(lane, job)
        self._jobs[stream] = job
        self.mark(stream)  # the stream may have spoken, or ended, before it was known here

    def mark(self, stream: TokenStream) -> None:
        """The stream has something to tell."""
        if not self._closing:
            if not self._marked:
                self._wire.dirty()  # it stays so until everything marked was told
            self._marked[stream] = None
            if stream.full and (job := self._jobs.get(stream)) is not None:
                self._drop_if_slow(job)

    def _tell(self, job: Job) -> None:
        run = job.run
        if job.reports:
            self._tell_reported(job)
            if job.held is not None and job.held.behind:
                self._behind.append(run.stream)
                return
        else:
            delta = run.next_delta()
            if delta is not None:
                self._frames.append(delta)
                return
            for event in run.events():
                self._frames.append(encode(event).decode())
        if run.refusal is not None:
            self._refuse(run.refusal, run.lane)
        if run.done or run.refusal is not None:
            self._finish(job)

    def _tell_reported(self, job: Job) -> None:
        """As `_tell`, with what the client also asked for: how the stream flows, and a tape to come back to."""
        run, stream, held = job.run, job.run.stream, job.held
        if held is not None and held.behind:
            self._tell_again(held)
            return
        if stream.held and not stream.starved and stream.pending:
            self._report(job, "slow")
        if stream in self._paused and not stream.starved:
            self.say(x.Resumed(run.id, self._paused.pop(stream), stream.sent, stream_id=run.lane))
        for event in run.events():
            if held is not None and isinstance(event, ev.Created):
                response = structs.replace(event.response, x_resume_token=held.key)
                event = ev.Created(event.sequence_number, response, event.stream_id)
            frame = encode(event).decode()
            self._frames.append(frame)
            if held is not None:
                before = held.tape.bytes
                held.tape.add(event, len(frame))
                held.told = event.sequence_number
                self.held.record(held, held.tape.bytes - before)
        if stream.starved:
            self._report(job, "credit")

    def _tell_again(self, held: Held) -> None:
        """Some of what the tape has and this connection has not."""
        size = 0
        for event in held.tape.after(held.told):
            frame = encode(structs.replace(event, stream_id=held.job.run.lane)).decode()
            self._frames.append(frame)
            held.told = event.sequence_number
            size += len(frame)
            if size > REPLAY_BYTES:
                break
        if not held.behind and not held.settled:
            self.mark(held.job.run.stream)

    def _report(self, job: Job, reason: str) -> None:
        stream = job.run.stream
        if stream not in self._paused:
            self._paused[stream] = reason
            self.say(x.Paused(job.run.id, reason, stream.sent, job.run.lane))

    def _drop_if_slow(self, job: Job) -> None:
        """The policy of a client that would rather lose an answer than wait for it."""
        request = job.run.request
        assert isinstance(request, ResponseCreate)
        if request.x_on_slow == "drop" and job.run.stream.finish is None:
            # Not from inside the step that is being told.
            self._settings.call_later(0.0, lambda: self._runtime.cancel(job.run.stream))
            self._close(4002, "reading too slowly")

    def _finish(self, job: Job) -> None:
        run, held = job.run, job.held
        del self._jobs[run.stream]
        self._paused.pop(run.stream, None)
        self._lanes.leave(job.lane)
        if held is not None:
            self.held.ended(held)
            if held.settled:
                return
            held.settled = True
        if run.stream.finish is FinishReason.ERROR:
            if job.continues_lane:
                self._forget(job.lane)
        else:
            turn = keep_answer(job, self._wire.tenant, self._store)
            self._forget(job.lane)
            self._lanes.latest[job.lane] = Latest(run.id, turn)
        if job.parent is not None:
            self._store.release(job.parent)

    def _parent(self, response_id: str | None) -> Turn | None:
        if response_id is None:
            return None
        for latest in self._lanes.latest.values():
            if latest.response_id == response_id:
                return latest.turn
        stored = self._store.get(self._wire.tenant, response_id)
        if stored is None:
            raise not_found(response_id)
        return stored.turn

    def _is_latest(self, lane: str | None, response_id: str | None) -> bool:
        latest = self._lanes.latest.get(lane)
        return latest is not None and latest.response_id == response_id

    def _forget(self, lane: str | None) -> None:
        if (latest := self._lanes.latest.pop(lane, None)) is not None:
            self._store.release(latest.turn)

    # -- verbs of ours (extension.py) --------------------------------------------------------------------------

    def _verb(self, verb: str, message: str | bytes, fields: dict[str, Raw]) -> None:
        try:
            VERBS[verb](self, message, fields)
        except (WireError, Refusal) as error:
            self.say(verb_error(WireError.of(error), fields))

    @property
    def tenant(self) -> Tenant:
        return self._wire.tenant

    @property
    def runtime(self) -> Runtime:
        return self._runtime

    def running(self, lane: str | None) -> Job | None:
        """The job that runs in this lane."""
        return self._lanes.running(lane)

    def take_over(self, held: Held, lane: str | None, after: int) -> None:
        """This connection reads a held response from behind event `after`, in `lane`. Raises WireError if the
        lane is not to be had."""
        job = held.job
        if not self._lanes.name(lane):
            raise WireError(
                "websocket_stream_limit_reached",
                f"A connection has at most {self._settings.lanes.named} named streams.",
                "stream_id",
            )
        if self._lanes.running(lane) not in (None, job):
            raise WireError("lane_busy", "another answer runs in this lane", "stream_id")
        if held.desk is self:
            self.give_up(held)
        name: ev.Lane = UNSET if lane is None else lane
        job.run.lane = name
        held.job = job = replace(job, lane=lane)
        self.held.attach(held, self, self.mark, after)
        self._lanes.start(lane, job)
        self._jobs[job.run.stream] = job
        status = "in_progress" if job.run.final is None else job.run.final.status
        self.say(x.Resumed(job.run.id, "reconnect", job.run.stream.sent, after + 1, status, name))
        self.mark(job.run.stream)

    def give_up(self, held: Held) -> None:
        """Another connection reads it now: this one is told so by its close code."""
        job = self._jobs.pop(held.job.run.stream, None)
        if job is None:
            return  # told to its end here
        self._marked.pop(job.run.stream, None)
        self._paused.pop(job.run.stream, None)
        self._lanes.leave(job.lane)
        if held.desk is not self:
            self._close(4001, "the answer was resumed on another connection")

    def say(self, event: Struct) -> None:
        """One of our own events goes out behind everything that was told before."""
        if not self._closing:
            self._frames.append(encode(event).decode())
            if len(self._frames) > UNREAD_FRAMES:
                self._close(1008, "answers are not being read")
            self._wire.dirty()

    # -- frames and the end ------------------------------------------------------------------------------------

    def _unreadable(self, error: WireError) -> None:
        """Answer a message that is no event, then count it: if it is one too many, the answer still goes out."""
        self._refuse(error, UNSET)
        self._wire.malformed()

    def _refuse(self, error: WireError | Refusal, lane: ev.Lane) -> None:
        self._send(error_frame(WireError.of(error), lane))

    def _send(self, frame: ev.ErrorFrame | ev.SteerFailed) -> None:
        if self._closing:
            return  # nothing follows the close
        self._frames.append(encode(frame).decode())
        if len(self._frames) > UNREAD_FRAMES:
            self._close(1008, "answers are not being read")
        self._wire.dirty()

    def _expire(self) -> None:
        self._expired = True
        self._wire.dirty()

    def _close_if_over(self) -> None:
        if self._closing or not self._lanes.idle:
            return
        if self._draining:
            self._close(1012, "the server restarts")
        elif self._expired:
            self._close(1001, "the connection reached its age limit")

    def _close(self, code: int, reason: str) -> None:
        if not self._closing:
            self._closing = True
            self._wire.close(code, reason)


def keep_answer(job: Job, tenant: Tenant, store: Conversations) -> Turn:
    """The answer of a job that has ended well, stored if its request did not forbid it; its turn, held once."""
    run = job.run
    assert run.final is not None
    turn = store.add_turn(job.parent, job.added + run.answer)
    if run.request.store is not False:
        store.put(tenant, run.id, encode(run.final), turn, len(job.added))
    return turn


def settle(held: Held, runtime: Runtime, store: Conversations) -> None:
    """Nobody comes back to this response: it is cancelled if it still runs, and kept if it had ended by itself."""
    job, stream = held.job, held.job.run.stream
    if held.settled:
        return
    held.settled = True
    if stream.finish is None:
        runtime.cancel(stream)
    elif stream.finish in (FinishReason.STOP, FinishReason.LENGTH):
        stream.limit = None
        job.run.events()
        store.release(keep_answer(job, held.tenant, store))
    if job.parent is not None:
        store.release(job.parent)


def error_frame(error: WireError, lane: ev.Lane = UNSET) -> ev.ErrorFrame:
    """The frame that answers a request for which no response exists."""
    inner = error.fields()
    headers = error.headers()
    return ev.ErrorFrame(
        error.status,
        ev.ErrorBody(inner.type, inner.code, inner.message, inner.param, headers or UNSET),
        lane,
    )


def not_found(response_id: str) -> WireError:
    """Clients compare this sentence."""
    return WireError(
        "previous_response_not_found",
        f"Previous response with id '{shorten(response_id)}' not found.",
        "previous_response_id",
    )


def _stopping() -> WireError:
    return WireError("server_is_overloaded", "The server is stopping; try again.", retry_after=1.0)


def _absent(raw: Raw | None) -> bool:
    return raw is None or bytes(raw).strip() == b"null"


def _lane(fields: dict[str, Raw]) -> ev.Lane:
    """The lane that a create names; UNSET for the unnamed one."""
    raw = fields.get("stream_id")
    if _absent(raw):
        return UNSET
    name = string(raw)
    if name is None or not _LANE.match(name):
        raise WireError(
            "invalid_stream_id",
            "stream_id must have 1 to 256 characters of A-Z, a-z, 0-9, '_', '.' and '-'.",
            "stream_id",
        )
    return name
