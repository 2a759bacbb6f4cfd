"""OpenAI Responses over WebSocket: one Session per connection. Knows events and lanes; knows no socket.

A request is refused with an `error` frame as long as no response exists; after `response.created` everything,
failure included, is told by response events. What is in flight when the connection goes is cancelled at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from msgspec import UNSET, Raw

from headrace.runtime.interface import FinishReason, Message, Refusal, Runtime, TokenStream
from headrace.runtime.refusal import shorten
from headrace.server.conversation import Conversations, Turn
from headrace.server.exchange import HttpRequest, Wire
from headrace.server.faces.asks import check_model, response_ask, response_messages
from headrace.server.faces.responses import ResponseRun
from headrace.server.faces.settings import FaceSettings
from headrace.server.protocol import response_events as ev
from headrace.server.protocol.codec import decode, encode, free_form, split, string
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.responses import ResponseCancel, ResponseCreate, ResponseSteer
from headrace.server.session import Lanes, Latest, WaitingBudget

UNREAD_FRAMES = 1024  # answers that may wait for a peer that does not read
STEER_ECHO = 64 << 10  # bytes of a refused steer's input that are repeated
_LANE = re.compile(r"\A[A-Za-z0-9_.-]{1,256}\Z")


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A response in flight: its lane, where it continues from (held), and what its input adds."""

    lane: str | None
    run: ResponseRun
    parent: Turn | None
    continues_lane: bool  # the parent is this lane's own last response
    added: tuple[Message, ...]


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
    ) -> None:
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
        frames, self._frames = self._frames, []
        return frames

    def closed(self, code: int) -> None:
        """Cancel everything in flight and let go of what the connection remembered."""
        self._closing = True
        self._timer.cancel()
        self._lanes.take_waiting()
        for stream, job in self._jobs.items():
            if stream.finish is None:
                self._runtime.cancel(stream)
            if job.parent is not None:
                self._store.release(job.parent)
        self._jobs.clear()
        self._marked.clear()
        for latest in self._lanes.latest.values():
            self._store.release(latest.turn)
        self._lanes.latest.clear()

    def drain(self) -> None:
        """Refuse what waits and what comes; close with 1012 when the running responses have ended."""
        self._draining = True
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
            if job.run.stream.finish is None:
                self._runtime.cancel(job.run.stream)

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
        while (waiting := self._lanes.next()) is not None:
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
        stream = self._runtime.open(ask, self._mark)
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
        self._lanes.start(lane, job)
        self._jobs[stream] = job
        self._mark(stream)  # the stream may have spoken, or ended, before it was known here

    def _mark(self, stream: TokenStream) -> None:
        if not self._closing:
            if not self._marked:
                self._wire.dirty()  # it stays so until everything marked was told
            self._marked[stream] = None

    def _tell(self, job: Job) -> None:
        run = job.run
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

    def _finish(self, job: Job) -> None:
        run = job.run
        del self._jobs[run.stream]
        self._lanes.leave(job.lane)
        if run.stream.finish is FinishReason.ERROR:
            if job.continues_lane:
                self._forget(job.lane)
        else:
            assert run.final is not None
            turn = self._store.add_turn(job.parent, job.added + run.answer)
            if run.request.store is not False:
                self._store.put(self._wire.tenant, run.id, encode(run.final), turn, len(job.added))
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
