"""OpenAI Realtime, text modality, over WebSocket: one Session per connection. Knows events; knows no socket.

One response at a time answers in the conversation; others may run beside it out of band. A client event that is
refused is answered with an `error` event that repeats its event_id, and the session goes on; once a response was
created, everything about it is told by its own events. What is in flight when the connection goes is cancelled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from msgspec import Raw, Struct

from headrace.runtime.interface import FinishReason, Refusal, Runtime, TokenStream
from headrace.runtime.refusal import shorten
from headrace.server.exchange import HttpReply, HttpRequest, Wire
from headrace.server.faces.answers import error_reply
from headrace.server.faces.asks import check_model
from headrace.server.faces.realtime import EventIds, RealtimeRun
from headrace.server.faces.realtime_conversation import ROOT, RealtimeConversation, size_of
from headrace.server.faces.realtime_items import characters, item_of, messages_of, newest, no_call
from headrace.server.faces.realtime_session import RealtimeSession, Settings
from headrace.server.faces.settings import FaceSettings
from headrace.server.protocol import realtime as rt
from headrace.server.protocol import realtime_events as ev
from headrace.server.protocol.codec import decode, encode, split, string
from headrace.server.protocol.errors import WireError
from headrace.server.session import WaitingBudget

E = TypeVar("E", bound=Struct)

PROTOCOLS = ("realtime",)
UNREAD_FRAMES = 1024  # answers that may wait for a peer that does not read
UNREAD_BYTES = 32 << 20  # and their bytes: every item that a client sends is told back
EVENT_ID_LENGTH = 512
ROOM = 8  # truncation leaves one part in so many of the context for an answer without a limit of its own
USUAL_RATIO = 0.25  # tokens in a character, as long as nothing better is known


class _Unknown(WireError):
    """An event of no known type: not a mistake in one, but nothing that could be read."""


@dataclass(slots=True, eq=False)
class Job:
    """A response in flight. `context` is the part of `whole` that its prompt was made of."""

    run: RealtimeRun
    settings: Settings
    whole: list[ev.Item]
    context: list[ev.Item]
    in_band: bool
    may_shorten: bool


def refuse_realtime(request: HttpRequest, runtime: Runtime, settings: FaceSettings) -> HttpReply | None:
    """The refusal of an upgrade that asks for what is not here, or None."""
    try:
        if request.query.get("intent") == "transcription":
            raise WireError("not_supported", "There are no transcription sessions here.", "intent")
        if "call_id" in request.query:
            raise WireError("not_supported", "There are no calls to join here.", "call_id")
        check_model(request.query.get("model"), runtime.card, settings.model_aliases)
    except WireError as error:
        return error_reply(error)
    return None


class RealtimeSocket:
    """A Session (exchange.py) that speaks Realtime events."""

    def __init__(
        self,
        request: HttpRequest,
        wire: Wire,
        runtime: Runtime,
        settings: FaceSettings,
        budget: WaitingBudget,
    ) -> None:
        self._wire = wire
        self._runtime = runtime
        self._settings = settings
        self._session = RealtimeSession(runtime.card.id, int(settings.now() + settings.connection_limit))
        self._conversation = RealtimeConversation(budget)
        self._ids = EventIds()
        self._jobs: dict[TokenStream, Job] = {}
        self._answering: Job | None = None  # the one in the conversation
        self._marked: dict[TokenStream, None] = {}
        self._frames: list[str | bytes] = []
        self._frame_bytes = 0
        self._ratio: float | None = None  # tokens in a character, in the last prompt
        self._expired = False
        self._draining = False
        self._closing = False  # nothing more is read: a close code is on its way, or the peer is gone
        self._timer = settings.call_later(settings.connection_limit, self._expire)
        self._send(ev.SessionCreated(self._ids(), self._session.object()))

    # -- Session -----------------------------------------------------------------------------------------------

    def received(self, message: str | bytes) -> None:
        """Answer one client event. Whatever is wrong with it becomes one error event."""
        if self._closing:
            return
        event_id: str | None = None
        try:
            fields = split(message)
            event_id = _event_id(fields)
            kind = _kind(fields)
        except WireError as error:
            self._unreadable(error, event_id)
            return
        try:
            self._take(kind, message, fields)
        except _Unknown as error:
            self._unreadable(error, event_id)
        except (WireError, Refusal) as error:
            self._refuse(error, event_id)

    def _take(self, kind: str, message: str | bytes, fields: dict[str, Raw]) -> None:
        match kind:
            case "session.update":
                self._update_session(self._decode(message, rt.SessionUpdate, fields).session)
            case "conversation.item.create":
                create = self._decode(message, rt.ItemCreate, fields)
                self._create_item(create.item, create.previous_item_id)
            case "conversation.item.delete":
                self._delete_item(self._decode(message, rt.ItemDelete, fields).item_id)
            case "conversation.item.retrieve":
                self._retrieve_item(self._decode(message, rt.ItemRetrieve, fields).item_id)
            case "response.create":
                self._create(self._decode(message, rt.ResponseCreate, fields).response)
            case "response.cancel":
                self._cancel(self._decode(message, rt.ResponseCancel, fields).response_id)
            case "input_audio_buffer.clear":
                # There is nothing in it, so now it is empty: clients clear it before each cancel.
                self._send(ev.InputAudioBufferCleared(self._ids()))
            case "input_audio_buffer.commit":
                raise WireError("input_audio_buffer_commit_empty", "The input audio buffer is empty.")
            case "input_audio_buffer.append" | "output_audio_buffer.clear" | "conversation.item.truncate":
                raise WireError("not_supported", "This server speaks text only: no audio.", "type")
            case other:
                raise _Unknown("unknown_event", f"unknown event type: '{shorten(other)}'", "type")

    def render(self) -> list[str | bytes]:
        """All frames that are ready."""
        while self._marked:
            marked, self._marked = self._marked, {}
            for stream in marked:
                if job := self._jobs.get(stream):
                    self._tell(job)
        self._close_if_over()
        frames, self._frames = self._frames, []
        self._frame_bytes = 0
        return frames

    def closed(self, code: int) -> None:
        """Cancel everything in flight and let go of the conversation."""
        self._closing = True
        self._timer.cancel()
        for stream in self._jobs:
            if stream.finish is None:
                self._runtime.cancel(stream)
        self._jobs.clear()
        self._marked.clear()
        self._answering = None
        self._conversation.close()

    def drain(self) -> None:
        """Take no new response; close with 1012 when the running ones have ended."""
        self._draining = True
        self._wire.dirty()  # the close follows the next rendering, also if nothing else happens

    # -- client events -----------------------------------------------------------------------------------------

    def _decode(self, message: str | bytes, type_: type[E], fields: dict[str, Raw]) -> E:
        decoded = decode(message, type_, strict=self._settings.strict_fields, fields=fields)
        for path in decoded.ignored:
            if path.rpartition(".")[2].startswith("x_"):
                raise WireError("unknown_parameter", f"unknown field: {path}", path)
        if decoded.ignored:
            self._settings.on_ignored_fields("realtime", len(decoded.ignored))
        return decoded.value

    def _update_session(self, given: rt.SessionFields) -> None:
        self._session.update(given)
        self._send(ev.SessionUpdated(self._ids(), self._session.object()))

    def _create_item(self, given: rt.Item, after: str | None) -> None:
        conversation = self._conversation
        runtime = self._runtime
        item = item_of(given, "item", sees=runtime.card.sees, check=runtime.check_picture)
        if item.id in conversation or item.id == ROOT:
            what = f"The conversation has an item '{item.id}' already."
            raise WireError("invalid_value", what, "item.id")
        if after is not None and after != ROOT and after not in conversation:
            raise WireError("invalid_value", _missing(after), "previous_item_id")
        if isinstance(item, ev.CallOutputItem) and not conversation.calls(item.call_id):
            raise no_call(item.call_id, "item.call_id")
        self._make_room(size_of(item), spare=after)
        previous = conversation.add(item, after)
        self._send(ev.ConversationItemAdded(self._ids(), previous, ev.shown(item)))
        self._send(ev.ConversationItemDone(self._ids(), previous, ev.shown(item)))

    def _make_room(self, size: int, spare: str | None = None) -> None:
        """Drop the oldest items, and say so, until `size` bytes more fit. WireError where that cannot be."""
        conversation = self._conversation
        if not conversation.affordable(size):
            raise WireError("server_is_overloaded", "All conversations together are too large; try again.")
        while not conversation.fits(size):
            oldest = conversation.oldest()
            never = size > conversation.bytes_limit or self._session.retention() is None
            if never or oldest is None or oldest == spare:
                raise WireError(
                    "conversation_full",
                    f"A conversation has at most {conversation.item_limit} items and "
                    f"{conversation.bytes_limit} bytes: delete some.",
                )
            conversation.remove(oldest)
            self._send(ev.ConversationItemDeleted(self._ids(), oldest))

    def _delete_item(self, item_id: str) -> None:
        if not self._conversation.remove(item_id):
            raise _no_item(item_id)
        self._send(ev.ConversationItemDeleted(self._ids(), item_id))

    def _retrieve_item(self, item_id: str) -> None:
        item = self._conversation.find(item_id)
        if item is None:
            raise _no_item(item_id)
        self._send(ev.ConversationItemRetrieved(self._ids(), ev.shown(item)))

    def _create(self, given: rt.ResponseFields | None) -> None:
        if self._draining:
            raise WireError("server_is_overloaded", "The server is stopping; try again.", retry_after=1.0)
        if self._expired:
            minutes = self._settings.connection_limit / 60
            raise WireError("session_expired", f"A session lasts {minutes:g} minutes: open a new one.")
        given = given or rt.ResponseFields()
        in_band = self._in_band(given.conversation)
        if in_band and self._answering is not None:
            raise WireError(
                "conversation_already_has_active_response",
                f"Conversation already has an active response in progress: {self._answering.run.id}. "
                "Wait until the response is finished before creating a new one.",
            )
        if len(self._jobs) >= self._settings.lanes.in_flight:
            raise WireError(
                "rate_limit_exceeded", f"{len(self._jobs)} responses run on this connection: no more may."
            )
        settings = self._session.settings.over(given, "response")
        if in_band:
            self._make_room(0)  # for the answer
        whole = self._conversation.context() if given.input is None else self._inputs(given.input)
        may_shorten = (
            given.input is None
            and self._session.retention() is not None
            and (settings.max_tokens or 0) < self._runtime.max_context
        )
        context = self._newest(whole, settings, less=False) if may_shorten else whole
        run = RealtimeRun(
            self._open(settings, context),
            self._ids,
            self._conversation if in_band else None,
            max_output_tokens=settings.max_output_tokens,
            metadata=given.metadata,
        )
        job = Job(run, settings, whole, context, in_band, may_shorten)
        self._jobs[run.stream] = job
        if in_band:
            self._answering = job
        self._send(run.created())
        self._mark(run.stream)  # the stream may have spoken, or ended, before it was known here

    def _in_band(self, conversation: str | None) -> bool:
        if conversation in (None, "auto", self._conversation.id):
            return True
        if conversation == "none":
            return False
        raise WireError("invalid_value", 'expected "auto" or "none"', "response.conversation")

    def _inputs(self, given: list[rt.Item]) -> list[ev.Item]:
        items: list[ev.Item] = []
        for index, item in enumerate(given):
            path = f"response.input[{index}]"
            if item.type != "item_reference":
                runtime = self._runtime
                made = item_of(item, path, sees=runtime.card.sees, check=runtime.check_picture)
                if isinstance(made, ev.CallOutputItem) and not _calls(items, made.call_id):
                    raise no_call(made.call_id, f"{path}.call_id")
                items.append(made)
                continue
            if item.id is None:
                raise WireError("missing_required_parameter", f"missing field: {path}.id", f"{path}.id")
            found = self._conversation.find(item.id)
            if found is None:
                raise WireError("invalid_value", _missing(item.id), f"{path}.id")
            items.append(found)
        return items

    def _open(self, settings: Settings, context: list[ev.Item]) -> TokenStream:
        return self._runtime.open(settings.ask(messages_of(context), self._wire.tenant), self._mark)

    def _cancel(self, response_id: str | None) -> None:
        found = self._answering
        if response_id is not None:
            found = next((job for job in self._jobs.values() if job.run.id == response_id), None)
        if found is None:
            raise WireError("response_cancel_not_active", "Cancellation failed: no active response found.")
        found.run.cancelled = True
        self._runtime.cancel(found.run.stream)

    # -- truncation --------------------------------------------------------------------------------------------

    def _newest(self, context: list[ev.Item], settings: Settings, *, less: bool) -> list[ev.Item]:
        """The newest items that fit beside the instructions and an answer, as far as can be told from the prompts
        so far. less: all of `context` was too much, so at least its first item goes."""
        retention = self._session.retention()
        assert retention is not None
        kept, token_limit = retention
        ratio = self._ratio or USUAL_RATIO
        room = math.inf
        if less or self._ratio is not None:
            whole = self._runtime.max_context
            answer = settings.max_tokens or whole // ROOM
            room = (whole - answer) / ratio - len(settings.options.instructions or "")
        if token_limit is not None:
            room = min(room, token_limit / ratio)
        if less:
            context = context[1:]
        elif len(newest(context, room)) == len(context):
            return context
        return newest(context, max(0.0, room * kept))

    def _shorten(self, job: Job) -> bool:
        """Start a response anew with less of the conversation, if its prompt was too long and there is less."""
        run, stream = job.run, job.run.stream
        assert stream.error is not None
        too_long = stream.error.code == "context_length_exceeded"
        if not too_long or not job.may_shorten or run.cancelled or run.began or len(job.context) < 2:
            return False
        self._learn_ratio(job)
        context = self._newest(job.context, job.settings, less=True)
        try:
            run.stream = self._open(job.settings, context)
        except (WireError, Refusal):
            return False  # the server takes no request now: the response fails with what was wrong before
        job.context = context
        del self._jobs[stream]
        self._jobs[run.stream] = job
        self._mark(run.stream)
        return True

    def _learn_ratio(self, job: Job) -> None:
        size = len(job.settings.options.instructions or "") + sum(map(characters, job.context))
        if size and job.run.stream.prompt_tokens:
            self._ratio = job.run.stream.prompt_tokens / size

    # -- the life of a response --------------------------------------------------------------------------------

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
        if run.stream.finish is FinishReason.ERROR and self._shorten(job):
            return
        for event in run.events():
            self._frames.append(encode(event).decode())
        if run.done:
            self._finish(job)

    def _finish(self, job: Job) -> None:
        stream = job.run.stream
        del self._jobs[stream]
        if self._answering is job:
            self._answering = None
        self._learn_ratio(job)
        if job.in_band and stream.times.joined is not None:
            # Only now: a prompt that did not fit at all must not cost the conversation its memory.
            self._conversation.forget(job.whole[: len(job.whole) - len(job.context)])

    # -- frames and the end ------------------------------------------------------------------------------------

    def _unreadable(self, error: WireError, event_id: str | None) -> None:
        """Answer a message that is no event, then count it: if it is one too many, the answer still goes out."""
        self._refuse(error, event_id)
        self._wire.malformed()

    def _refuse(self, error: WireError | Refusal, event_id: str | None) -> None:
        inner = WireError.of(error).fields()
        body = ev.ErrorBody(inner.type, inner.code, inner.message, inner.param, event_id)
        self._send(ev.ErrorEvent(self._ids(), body))

    def _send(self, event: ev.Event) -> None:
        if self._closing:
            return  # nothing follows the close
        frame = encode(event).decode()
        self._frames.append(frame)
        self._frame_bytes += len(frame)
        if len(self._frames) > UNREAD_FRAMES or self._frame_bytes > UNREAD_BYTES:
            self._close(1008, "answers are not being read")
        self._wire.dirty()

    def _expire(self) -> None:
        self._expired = True
        self._wire.dirty()

    def _close_if_over(self) -> None:
        if self._closing or self._jobs:
            return
        if self._draining:
            self._close(1012, "the server restarts")
        elif self._expired:
            self._close(1001, "the session reached its age limit")

    def _close(self, code: int, reason: str) -> None:
        if not self._closing:
            self._closing = True
            self._wire.close(code, reason)


def _event_id(fields: Mapping[str, Raw]) -> str | None:
    """The client's own name for its event, to be repeated in an error."""
    raw = fields.get("event_id")
    if raw is None or bytes(raw).strip() == b"null":
        return None
    name = string(raw)
    if name is None or len(name) > EVENT_ID_LENGTH:
        what = f"event_id: expected a string of at most {EVENT_ID_LENGTH} characters"
        raise WireError("invalid_value", what, "event_id")
    return name


def _kind(fields: Mapping[str, Raw]) -> str:
    raw = fields.get("type")
    if raw is None or bytes(raw).strip() == b"null":
        raise WireError("missing_required_parameter", "missing field: type", "type")
    kind = string(raw)
    if kind is None:
        raise WireError("invalid_value", "type: expected a string", "type")
    return kind


def _calls(items: list[ev.Item], call_id: str) -> bool:
    return any(isinstance(item, ev.CallItem) and item.call_id == call_id for item in items)


def _missing(item_id: str) -> str:
    return f"The conversation has no item '{shorten(item_id)}'."


def _no_item(item_id: str) -> WireError:
    # Of this code alone clients expect that it answers their question for an item, and nothing else.
    return WireError("item_retrieve_invalid_item_id", _missing(item_id), "item_id")
