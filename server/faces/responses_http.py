"""/v1/responses over HTTP: create (whole or as events), read, list input, delete. Knows no socket."""

from __future__ import annotations

from typing import Any

from headrace.runtime.interface import FinishReason, Message, Refusal, Runtime, TokenStream
from headrace.server.conversation import Conversations, Turn
from headrace.server.exchange import Answer, HttpReply, HttpRequest, Wire
from headrace.server.faces.answers import StreamAnswer, error_reply, ignored_header
from headrace.server.faces.asks import check_model, response_ask, response_messages
from headrace.server.faces.pictures import picture_url
from headrace.server.faces.responses import ResponseRun
from headrace.server.faces.responses_ws import not_found
from headrace.server.faces.settings import FaceSettings
from headrace.server.protocol import response_events as ev
from headrace.server.protocol.codec import decode, encode
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.responses import ResponseRequest

DELTA_EVENT = "event: response.output_text.delta\ndata: "


class ResponsesFace:
    """The HTTP half of the Responses API."""

    def __init__(self, runtime: Runtime, settings: FaceSettings, store: Conversations) -> None:
        self._runtime = runtime
        self._settings = settings
        self._store = store

    def create(self, request: HttpRequest, wire: Wire) -> HttpReply | Answer:
        """POST /v1/responses."""
        headers: dict[str, str] = {}
        try:
            decoded = decode(request.body, ResponseRequest, strict=self._settings.strict_fields)
            headers = ignored_header(decoded.ignored)
            if decoded.ignored:
                self._settings.on_ignored_fields("responses", len(decoded.ignored))
            body = decoded.value
            check_model(
                body.model or request.query.get("model"), self._runtime.card, self._settings.model_aliases
            )
            parent = self._parent(request, body.previous_response_id)
            added = response_messages(body)
            ask = response_ask(body, () if parent is None else parent.history(), added, request.tenant)
            answer = ResponseAnswer(self._runtime, wire, headers, body, self._settings, self._store)
            answer.begin(answer.open(ask), parent, added)
            return answer
        except (WireError, Refusal) as error:
            return error_reply(error, headers)

    def read(self, request: HttpRequest, wire: Wire) -> HttpReply:
        """GET /v1/responses/{id}: the stored response object."""
        stored = self._store.get(request.tenant, request.parameters["id"])
        if stored is None:
            return error_reply(_unknown(request.parameters["id"]))
        if request.query.get("stream") == "true":
            return error_reply(WireError("unsupported_parameter", "replay is not supported yet", "stream"))
        return HttpReply(200, stored.response)

    def input_items(self, request: HttpRequest, wire: Wire) -> HttpReply:
        """GET /v1/responses/{id}/input_items: the messages that this response was asked with, newest turn only."""
        response_id = request.parameters["id"]
        stored = self._store.get(request.tenant, response_id)
        if stored is None:
            return error_reply(_unknown(response_id))
        items = [_input_item(response_id, i, m) for i, m in enumerate(stored.turn.messages[: stored.inputs])]
        body = {
            "object": "list",
            "data": items,
            "first_id": items[0]["id"] if items else None,
            "last_id": items[-1]["id"] if items else None,
            "has_more": False,
        }
        return HttpReply(200, encode(body))

    def delete(self, request: HttpRequest, wire: Wire) -> HttpReply:
        """DELETE /v1/responses/{id}."""
        response_id = request.parameters["id"]
        if not self._store.delete(request.tenant, response_id):
            return error_reply(_unknown(response_id))
        return HttpReply(200, encode(ev.DeletedResponse(response_id)))

    def one(self, request: HttpRequest, wire: Wire) -> HttpReply:
        """GET or DELETE of one stored response."""
        return self.delete(request, wire) if request.method == "DELETE" else self.read(request, wire)

    def _parent(self, request: HttpRequest, response_id: str | None) -> Turn | None:
        if response_id is None:
            return None
        stored = self._store.get(request.tenant, response_id)
        if stored is None:
            raise not_found(response_id)
        return stored.turn


class ResponseAnswer(StreamAnswer):
    """One response over HTTP."""

    def __init__(
        self,
        runtime: Runtime,
        wire: Wire,
        headers: dict[str, str],
        request: ResponseRequest,
        settings: FaceSettings,
        store: Conversations,
    ) -> None:
        super().__init__(runtime, wire, headers, streamed=bool(request.stream))
        self._request = request
        self._settings = settings
        self._store = store
        self._tenant = wire.tenant
        self._parent: Turn | None = None
        self._added: tuple[Message, ...] = ()
        self._run: ResponseRun | None = None

    def begin(self, stream: TokenStream, parent: Turn | None, added: tuple[Message, ...]) -> None:
        """Take the opened stream; the parent is held until the end."""
        self._parent = None if parent is None else self._store.hold(parent)
        self._added = added
        self._run = ResponseRun(
            self._request, stream, created=self._settings.now(), model=self._runtime.card.id
        )

    def parts(self, stream: TokenStream) -> list[bytes]:
        """The run's events, each under its name."""
        run = self._run
        assert run is not None
        if self._streamed and (delta := run.next_delta()) is not None:
            return [f"{DELTA_EVENT}{delta}\n\n".encode()]
        events = run.events()
        if run.done or run.refusal is not None:
            self._keep(run)
        if not self._streamed:
            return []
        return [b"event: " + _name(event) + b"\ndata: " + encode(event) + b"\n\n" for event in events]

    def whole(self, stream: TokenStream) -> bytes:
        """The response object."""
        assert self._run is not None and self._run.final is not None
        return encode(self._run.final)

    def failure(self, error: WireError) -> list[bytes]:
        """The terminal event has told it; only a failure before any event is a flat `error` event."""
        assert self._run is not None
        if self._run.done:
            return []
        inner = error.fields()
        flat: dict[str, Any] = {
            "type": "error",
            "code": inner.code,
            "message": inner.message,
            "param": inner.param,
            "sequence_number": self._run.next_number(),
        }
        return [b"event: error\ndata: " + encode(flat) + b"\n\n"]

    def dropped(self) -> None:
        """An abandoned response leaves nothing behind."""
        self._release()

    def _keep(self, run: ResponseRun) -> None:
        if run.done and run.stream.finish is not FinishReason.ERROR and self._request.store is not False:
            assert run.final is not None
            turn = self._store.add_turn(self._parent, self._added + run.answer)
            self._store.put(self._tenant, run.id, encode(run.final), turn, len(self._added))
            self._store.release(turn)
        self._release()

    def _release(self) -> None:
        parent, self._parent = self._parent, None
        if parent is not None:
            self._store.release(parent)


def _name(event: ev.Event) -> bytes:
    tag = event.__struct_config__.tag
    assert isinstance(tag, str)
    return tag.encode()


def _unknown(response_id: str) -> WireError:
    return WireError(
        "response_not_found", f"Response with id '{response_id[:200]}' not found.", "response_id"
    )


def _input_item(response_id: str, index: int, message: Message) -> dict[str, Any]:
    kind = "output_text" if message.role == "assistant" else "input_text"
    parts: list[dict[str, Any]] = []
    done = 0
    for shown in message.pictures:
        if shown.at > done:
            parts.append({"type": kind, "text": message.content[done : shown.at]})
        detail = "low" if shown.small else "auto"
        parts.append({"type": "input_image", "image_url": picture_url(shown), "detail": detail})
        done = shown.at
    if done < len(message.content) or not parts:
        parts.append({"type": kind, "text": message.content[done:]})
    for part in parts:
        if part["type"] == "output_text":
            part["annotations"] = []
    return {
        "id": f"{response_id.replace('resp_', 'msg_', 1)}_{index}",
        "type": "message",
        "role": message.role,
        "status": "completed",
        "content": parts,
    }
