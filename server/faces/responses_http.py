"""/v1/responses over HTTP: create (whole, as events, in the background), read, follow, cancel, list input, delete.

Knows no socket.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import Raw

from headrace.runtime.interface import Refusal, Runtime, StepBoard, TokenStream, micros
from headrace.server.conversation import Stored, Turn
from headrace.server.exchange import Answer, HttpReply, HttpRequest, Wire
from headrace.server.faces.answers import StreamAnswer, error_reply, ignored_header
from headrace.server.faces.asks import check_model, check_response, response_ask, response_messages
from headrace.server.faces.compact_http import CompactAnswer
from headrace.server.faces.following import FollowAnswer, sse_event
from headrace.server.faces.later import Later
from headrace.server.faces.lineage import R, Traced, trace
from headrace.server.faces.opening import open_response
from headrace.server.faces.responses import BEGINNING
from headrace.server.faces.running import Running, RunningResponse
from headrace.server.faces.settings import FaceSettings
from headrace.server.faces.tape import Tape
from headrace.server.faces.telemetry import steps_told
from headrace.server.protocol import response_events as ev
from headrace.server.protocol.codec import decode, encode, split, string
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.responses import CompactRequest, ResponseRequest

PAGE_LIMIT = 100  # items in one reply
PAGE_DEFAULT = 20


class ResponsesFace:
    """The HTTP half of the Responses API."""

    def __init__(self, runtime: Runtime, settings: FaceSettings, running: Running) -> None:
        self._runtime = runtime
        self._settings = settings
        self._running = running
        self._store = running.store

    def create(self, request: HttpRequest, wire: Wire) -> HttpReply | Answer:
        """POST /v1/responses."""
        return self._continued(request, wire, ResponseRequest, self._begin)

    def count(self, request: HttpRequest, wire: Wire) -> HttpReply | Answer:
        """POST /v1/responses/input_tokens: how long the prompt of such a request is."""
        return self._continued(request, wire, ResponseRequest, self._count)

    def compact(self, request: HttpRequest, wire: Wire) -> HttpReply | Answer:
        """POST /v1/responses/compact: the conversation in fewer words, as items of the next request."""
        return self._continued(request, wire, CompactRequest, self._compact)

    def _continued(
        self,
        request: HttpRequest,
        wire: Wire,
        kind: type[R],
        begin: Callable[[HttpRequest, Wire, R, Turn | None, dict[str, str]], HttpReply | Answer],
    ) -> HttpReply | Answer:
        """What `begin` makes of the request, and of the turn that it continues."""
        headers: dict[str, str] = {}
        try:
            decoded = decode(request.body, kind, strict=self._settings.strict_fields)
            headers = ignored_header(decoded.ignored)
            if decoded.ignored:
                self._settings.on_ignored_fields("responses", len(decoded.ignored))
            body = decoded.value
            check_model(
                body.model or request.query.get("model"), self._runtime.card, self._settings.model_aliases
            )
        except (WireError, Refusal) as error:
            return error_reply(error, headers)
        later = Later(wire)

        def traced(outcome: Traced[R] | WireError | Refusal) -> None:
            if isinstance(outcome, Traced):
                later.settle(begin(request, wire, outcome.request, outcome.parent, headers))
            else:
                later.settle(error_reply(outcome, headers))

        trace(self._store, request.tenant, body, _not_near, traced)
        return later.now()

    def _compact(
        self,
        request: HttpRequest,
        wire: Wire,
        body: CompactRequest,
        parent: Turn | None,
        headers: dict[str, str],
    ) -> HttpReply | Answer:
        answer = CompactAnswer(self._runtime, self._settings, wire, headers, request.tenant)
        try:
            answer.begin(body, () if parent is None else parent.history())
        except (WireError, Refusal) as error:
            return error_reply(error, headers)
        return answer

    def _count(
        self,
        request: HttpRequest,
        wire: Wire,
        body: ResponseRequest,
        parent: Turn | None,
        headers: dict[str, str],
    ) -> HttpReply | Answer:
        try:
            check_response(body)
            history = () if parent is None else parent.history()
            ask = response_ask(body, history, response_messages(body.input, request.tenant), request.tenant)
            answer = Later(wire)

            def counted(count: int | Refusal) -> None:
                if isinstance(count, Refusal):
                    answer.settle(error_reply(count, headers))
                else:
                    answer.settle(HttpReply(200, encode(ev.InputTokens(count)), headers=headers))

            self._runtime.count(ask, counted)
            return answer
        except (WireError, Refusal) as error:
            return error_reply(error, headers)

    def _begin(
        self,
        request: HttpRequest,
        wire: Wire,
        body: ResponseRequest,
        parent: Turn | None,
        headers: dict[str, str],
    ) -> HttpReply | Answer:
        try:
            if body.background:
                return self._begin_in_background(request, wire, body, parent, headers)
            if body.x_telemetry == "step" and not body.stream:
                raise WireError(
                    "invalid_value", "x_telemetry: steps are told in a stream only", "x_telemetry"
                )
            answer = ResponseAnswer(
                self._runtime, wire, headers, streamed=bool(body.stream), clock=self._settings.clock
            )
            answer.begin(
                open_response(
                    self._runtime,
                    self._settings,
                    self._running,
                    body,
                    parent,
                    request.tenant,
                    answer.listen,
                    board=answer.board,
                )
            )
            return answer
        except (WireError, Refusal) as error:
            return error_reply(error, headers)

    def read(self, request: HttpRequest, wire: Wire) -> HttpReply | Answer:
        """GET /v1/responses/{id}: the response object, or its events after `starting_after`."""
        response_id = request.parameters["id"]
        try:
            after = _starting_after(request)
        except WireError as error:
            return error_reply(error)
        running = self._running.find(request.tenant, response_id)
        if running is not None and running.tape is not None:
            if after is not None:
                return FollowAnswer(wire, running.tape, after, running)
            return HttpReply(200, encode(_object(running)))

        def told(stored: Stored | None) -> HttpReply | Answer:
            if stored is None:
                return error_reply(_unknown(response_id))
            if after is not None:
                return FollowAnswer(wire, Tape.unpack(stored.tape), after, None)
            return HttpReply(200, stored.response)

        return self._look_up(request, wire, response_id, told)

    def cancel(self, request: HttpRequest, wire: Wire) -> HttpReply | Answer:
        """POST /v1/responses/{id}/cancel: any response that runs; one that has ended is told as it is."""
        response_id = request.parameters["id"]
        running = self._running.find(request.tenant, response_id)
        if running is not None:
            running.cancel()
            if running.run.refusal is not None:
                return error_reply(running.run.refusal)
            return HttpReply(200, encode(_object(running)))

        def told(stored: Stored | None) -> HttpReply:
            return error_reply(_unknown(response_id)) if stored is None else HttpReply(200, stored.response)

        return self._look_up(request, wire, response_id, told)

    def input_items(self, request: HttpRequest, wire: Wire) -> HttpReply | Answer:
        """GET /v1/responses/{id}/input_items: what this response was asked with, newest item first."""
        response_id = request.parameters["id"]
        running = self._running.find(request.tenant, response_id)

        def told(items: Sequence[Raw]) -> HttpReply:
            try:
                return HttpReply(200, encode(_page(items, request)))
            except WireError as error:
                return error_reply(error)

        if running is not None and running.stored:
            return told(running.items)
        return self._look_up(
            request,
            wire,
            response_id,
            lambda stored: error_reply(_unknown(response_id)) if stored is None else told(stored.items),
        )

    def delete(self, request: HttpRequest, wire: Wire) -> HttpReply | Answer:
        """DELETE /v1/responses/{id}. One that still runs is stopped, and not stored."""
        response_id = request.parameters["id"]
        running = self._running.find(request.tenant, response_id)
        reply = HttpReply(200, encode(ev.DeletedResponse(response_id)))
        if running is not None and running.stored:
            running.stored = False
            running.cancel()
            return reply
        later = Later(wire)

        def deleted(found: bool | Refusal) -> None:
            if isinstance(found, Refusal):
                later.settle(error_reply(found))
            else:
                later.settle(reply if found else error_reply(_unknown(response_id)))

        self._store.remove(request.tenant, response_id, deleted)
        return later.now()

    def one(self, request: HttpRequest, wire: Wire) -> HttpReply | Answer:
        """GET or DELETE of one response."""
        return self.delete(request, wire) if request.method == "DELETE" else self.read(request, wire)

    def _begin_in_background(
        self,
        request: HttpRequest,
        wire: Wire,
        body: ResponseRequest,
        parent: Turn | None,
        headers: dict[str, str],
    ) -> HttpReply | Answer:
        if body.store is False:
            raise WireError(
                "unsupported_parameter", "background needs store: how else would it be read?", "background"
            )
        if body.x_telemetry == "step":
            what = "x_telemetry: a response in the background has no reader to tell each step to"
            raise WireError("invalid_value", what, "x_telemetry")
        owner = Background(self._settings)
        running = open_response(
            self._runtime,
            self._settings,
            self._running,
            body,
            parent,
            request.tenant,
            owner.listen,
            background=True,
        )
        running.run.announced = True  # the id is known: what goes wrong from now on is told of this response
        owner.begin(running)
        if body.stream:
            assert running.tape is not None
            return FollowAnswer(wire, running.tape, 0, running, headers)
        return HttpReply(200, encode(running.run.snapshot("queued")), headers=headers)

    def _look_up(
        self,
        request: HttpRequest,
        wire: Wire,
        response_id: str,
        answer: Callable[[Stored | None], HttpReply | Answer],
    ) -> HttpReply | Answer:
        """What `answer` makes of the stored response: at once if it is in memory, else when it has been read."""
        later = Later(wire)

        def found(stored: Stored | Refusal | None) -> None:
            later.settle(error_reply(stored) if isinstance(stored, Refusal) else answer(stored))

        self._store.find(request.tenant, response_id, found)
        return later.now()


class Background:
    """The owner of a response without a connection: reads its stream whenever there is something to read."""

    def __init__(self, settings: FaceSettings) -> None:
        self._settings = settings
        self._running: RunningResponse | None = None
        self._soon = False

    def begin(self, running: RunningResponse) -> None:
        """The response to read."""
        self._running = running
        self.listen(running.run.stream)  # it may have ended already

    def listen(self, stream: TokenStream) -> None:
        """The stream's listener: it only marks."""
        if not self._soon:
            self._soon = True
            self._settings.call_later(0.0, self._read)

    def _read(self) -> None:
        self._soon = False
        assert self._running is not None
        if self._running.over:
            self._running.release()
            return
        self._running.advance()
        if self._running.over:
            self._running.release()


class ResponseAnswer(StreamAnswer):
    """One response over HTTP, which ends with its connection."""

    _running: RunningResponse

    def __init__(
        self,
        runtime: Runtime,
        wire: Wire,
        headers: Mapping[str, str],
        *,
        streamed: bool,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(runtime, wire, headers, streamed=streamed)
        self.board = StepBoard()
        self._clock = clock

    def begin(self, running: RunningResponse) -> None:
        """Take the response that was opened with `listen`."""
        self._running = running
        self.take(running.run.stream)

    def parts(self, stream: TokenStream) -> list[bytes]:
        """The run's events, each under its name. Steps come before what they brought, behind the beginning."""
        run, board = self._running.run, self.board
        at = 0 if run.began else BEGINNING
        if board.used:
            board.told_at = micros(self._clock())
        said = self._running.take()
        if board.news and run.began:
            said[at:at] = steps_told(board)
        if self._running.over:
            # If another request has cancelled it, the answer is the response as it was cut.
            self.cancel_is_answer = self._running.cancelled
            self._running.release()
        return [sse_event(raw) for raw in said] if self._streamed else []

    def whole(self, stream: TokenStream) -> bytes:
        """The response object."""
        assert self._running.run.final is not None
        return encode(self._running.run.final)

    def failure(self, error: WireError) -> list[bytes]:
        """The terminal event has told it; only a failure before any event is a flat `error` event."""
        run = self._running.run
        if run.done:
            return []
        inner = error.fields()
        flat: dict[str, Any] = {
            "type": "error",
            "code": inner.code,
            "message": inner.message,
            "param": inner.param,
            "sequence_number": run.next_number(),
        }
        return [b"event: error\ndata: " + encode(flat) + b"\n\n"]

    def dropped(self) -> None:
        """An abandoned response leaves nothing behind."""
        self._running.abandon()


def _not_near(response_id: str) -> None:
    """HTTP remembers nothing between its requests."""


def _object(running: RunningResponse) -> ev.Response:
    run = running.run
    if run.final is not None:
        return run.final
    return run.snapshot("queued" if running.background and not run.began else "in_progress")


def _starting_after(request: HttpRequest) -> int | None:
    """The first event that is asked for; None if the object is."""
    if request.query.get("stream") not in ("true", "1"):
        return None
    given = request.query.get("starting_after")
    if given is None:
        return 0
    return _number(given, "starting_after", -1, 1 << 31) + 1


def _number(text: str, name: str, low: int, high: int) -> int:
    digits = text.removeprefix("-")
    if digits.isascii() and digits.isdigit() and len(digits) <= 10 and low <= int(text) <= high:
        return int(text)
    raise WireError("invalid_value", f"{name} must be an integer between {low} and {high}", name)


def _page(items: Sequence[Raw], request: HttpRequest) -> dict[str, Any]:
    """One page of `items`, as the list object of the API."""
    query = request.query
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise WireError("invalid_value", "order must be asc or desc", "order")
    limit = _number(query.get("limit", str(PAGE_DEFAULT)), "limit", 1, PAGE_LIMIT)
    rows = [(string(split(bytes(item))["id"]), item) for item in items]
    if order == "desc":
        rows.reverse()
    if (after := query.get("after")) is not None:
        at = next((index for index, (name, _) in enumerate(rows) if name == after), None)
        if at is None:
            raise WireError("invalid_value", f"after: no item '{after[:200]}' here", "after")
        rows = rows[at + 1 :]
    page = rows[:limit]
    return {
        "object": "list",
        "data": [item for _, item in page],
        "first_id": page[0][0] if page else None,
        "last_id": page[-1][0] if page else None,
        "has_more": len(rows) > limit,
    }


def _unknown(response_id: str) -> WireError:
    return WireError(
        "response_not_found", f"Response with id '{response_id[:200]}' not found.", "response_id"
    )
