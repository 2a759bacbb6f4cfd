"""From a token stream to the events of one Realtime response. Knows their order and what goes into the
conversation; knows no transport, and not how the stream came to be.

A response exists from its creation: unlike on the Responses socket, whatever goes wrong afterwards is told by
`response.done`.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from headrace.runtime.interface import (
    CallArguments,
    CallBegin,
    CallEnd,
    FinishReason,
    Piece,
    ReasoningPiece,
    Refusal,
    TextPiece,
    TokenStream,
    joined,
)
from headrace.server.faces.realtime_conversation import RealtimeConversation
from headrace.server.ids import new_id
from headrace.server.protocol import realtime_events as ev
from headrace.server.protocol.codec import encode
from headrace.server.protocol.errors import WireError

EVENT_IS, DELTA_IS = '"event_id":"', '"delta":"'


class EventIds:
    """The ids of one connection's events: nobody can guess the first part, none repeats."""

    def __init__(self) -> None:
        self.base = new_id("event") + "_"
        self._count = 0

    def number(self) -> int:
        """What comes behind `base` in the next id."""
        self._count += 1
        return self._count

    def __call__(self) -> str:
        """The next id."""
        return f"{self.base}{self.number()}"


class RealtimeRun:
    """One response from response.created to response.done.

    `created()` is its first event. `events()` returns what can be told then; `done` is true once that included
    response.done. With a `conversation` the items it makes are put there, without one it is out of band.
    """

    def __init__(
        self,
        stream: TokenStream,
        ids: EventIds,
        conversation: RealtimeConversation | None,
        *,
        max_output_tokens: int | str = "inf",
        metadata: dict[str, str] | None = None,
    ) -> None:
        self.id = new_id("resp")
        self.stream = stream
        self.cancelled = False  # by the client; set by whoever cancels the stream for it
        self.done = False
        self._ids = ids
        self._conversation = conversation
        self._max_output_tokens = max_output_tokens
        self._metadata = metadata
        self._output: list[ev.Item] = []  # items that are finished
        self._open: ev.MessageItem | ev.CallItem | None = None  # the one that is being written
        self._said: list[str] = []  # of its text, or of its arguments
        self._delta_ends: tuple[str, str, str] | None = None  # of the open item, if it is a message

    @property
    def began(self) -> bool:
        """Something of the answer was told: it can no longer be started anew."""
        return self._open is not None or bool(self._output)

    def created(self) -> ev.ResponseCreated:
        """The first event."""
        return ev.ResponseCreated(self._ids(), self._response("in_progress"))

    def events(self) -> list[ev.Event]:
        """Everything new, in order. Entries that wait together become one delta."""
        events: list[ev.Event] = []
        if self.done:
            return events
        stream = self.stream
        pieces = stream.take_pieces()
        if stream.ended:
            pieces = joined([*pieces, *stream.tail_pieces])
        self._say(pieces, events)
        if stream.ended:
            self._end(events)
        return events

    def next_delta(self) -> str | None:
        """What `events()` would return, where that is one delta in the middle of a message, as JSON; else None.

        Nearly every event is one of these, and all of a message differ in event id and text alone."""
        stream, message = self.stream, self._open
        if type(message) is not ev.MessageItem or stream.finish is not None or stream.head == stream.sent:
            return None
        text = stream.take_plain()
        if not text:
            return None
        if self._delta_ends is None:
            self._delta_ends = self._cut_delta(message.id)
        begin, middle, end = self._delta_ends
        self._said.append(text)
        return f"{begin}{self._ids.number()}{middle}{encode(text).decode()}{end}"

    def _cut_delta(self, message: str) -> tuple[str, str, str]:
        """The JSON of a delta before the number of its id, between number and text, and after the text. The names
        cannot stand in a value: the quotation marks in there would be escaped."""
        sample = encode(ev.TextDelta("", self.id, message, len(self._output), 0, "")).decode()
        begin, found, rest = sample.partition(EVENT_IS)
        middle, also, end = rest.partition(DELTA_IS)
        assert found and also
        return begin + EVENT_IS + self._ids.base, middle + DELTA_IS[:-1], end[1:]

    # -- pieces of the golden sequences ------------------------------------------------------------------------

    def _say(self, pieces: Sequence[Piece], events: list[ev.Event]) -> None:
        for piece in pieces:
            match piece:
                case TextPiece():
                    if not isinstance(self._open, ev.MessageItem):
                        self._begin_message(events)
                    self._add(piece.text, events)
                case CallBegin():
                    self._begin_call(piece.name, events)
                case CallArguments():
                    self._add(piece.text, events)
                case CallEnd():
                    self._close("completed" if piece.whole else "incomplete", events)
                case ReasoningPiece():
                    pass  # the protocol has no event for what a model thinks; its tokens are counted

    def _add(self, text: str, events: list[ev.Event]) -> None:
        item, index = self._open, len(self._output)
        self._said.append(text)
        if isinstance(item, ev.MessageItem):
            events.append(ev.TextDelta(self._ids(), self.id, item.id, index, 0, text))
        else:
            assert item is not None, "arguments come between the begin and the end of a call"
            events.append(ev.ArgumentsDelta(self._ids(), self.id, item.id, index, item.call_id, text))

    def _begin_message(self, events: list[ev.Event]) -> None:
        item = ev.MessageItem(new_id("item"), status="in_progress", role="assistant")
        self._begin(item, events)
        index = len(self._output)
        events.append(ev.PartAdded(self._ids(), self.id, item.id, index, 0, ev.TextPart("")))

    def _begin_call(self, name: str, events: list[ev.Event]) -> None:
        self._begin(
            ev.CallItem(new_id("item"), status="in_progress", call_id=new_id("call"), name=name), events
        )

    def _begin(self, item: ev.MessageItem | ev.CallItem, events: list[ev.Event]) -> None:
        self._close("completed", events)
        self._open, self._said, self._delta_ends = item, [], None
        events.append(ev.OutputItemAdded(self._ids(), self.id, len(self._output), item))
        if self._conversation is not None:
            previous = self._conversation.add(item)
            events.append(ev.ConversationItemAdded(self._ids(), previous, item))

    def _close(self, status: str, events: list[ev.Event]) -> None:
        """End the open item, if there is one."""
        item, index = self._open, len(self._output)
        if item is None:
            return
        said = "".join(self._said)
        done: ev.Item
        if isinstance(item, ev.MessageItem):
            events.append(ev.TextDone(self._ids(), self.id, item.id, index, 0, said))
            events.append(ev.PartDone(self._ids(), self.id, item.id, index, 0, ev.TextPart(said)))
            done = msgspec.structs.replace(item, status=status, content=(ev.OutputText(said),))
        else:
            if status == "completed":  # clients call the tool on this event: never for half a call
                events.append(
                    ev.ArgumentsDone(self._ids(), self.id, item.id, index, item.call_id, item.name, said)
                )
            done = msgspec.structs.replace(item, status=status, arguments=said)
        # A client may have deleted the item while it was written: then only the response still tells of it.
        if self._conversation is not None and self._conversation.settle(done):
            previous = self._conversation.before(done.id)
            events.append(ev.ConversationItemDone(self._ids(), previous, done))
        events.append(ev.OutputItemDone(self._ids(), self.id, index, done))
        self._output.append(done)
        self._open = None

    def _end(self, events: list[ev.Event]) -> None:
        finish, error = self.stream.finish, self.stream.error
        if not self.began and finish in (FinishReason.STOP, FinishReason.LENGTH):
            self._begin_message(events)  # an answer without text is still an answer
        self._close("completed" if finish is FinishReason.STOP else "incomplete", events)
        details: ev.StatusDetails | None = None
        if finish is FinishReason.STOP:
            status = "completed"
        elif finish is FinishReason.LENGTH:
            status, details = "incomplete", ev.StatusDetails("incomplete", "max_output_tokens")
        elif finish is FinishReason.CANCELLED and self.cancelled:
            status, details = "cancelled", ev.StatusDetails("cancelled", "client_cancelled")
        else:
            # Who else cancels is the server itself, to stop: of that the protocol's reasons know none.
            error = error or Refusal("server_is_overloaded", "The server is stopping; try again.")
            status, details = "failed", ev.StatusDetails("failed", error=status_error(error))
        events.append(ev.ResponseDone(self._ids(), self._response(status, details)))
        events.append(ev.RateLimitsUpdated(self._ids()))
        self.done = True

    def _response(self, status: str, details: ev.StatusDetails | None = None) -> ev.ResponseObject:
        return ev.ResponseObject(
            id=self.id,
            status=status,
            status_details=details,
            output=tuple(self._output),
            conversation_id=None if self._conversation is None else self._conversation.id,
            max_output_tokens=self._max_output_tokens,
            metadata=self._metadata,
            usage=None if status == "in_progress" else usage_of(self.stream),
        )


def usage_of(stream: TokenStream) -> ev.Usage:
    """The token counts of a stream in the words of the Realtime API. A prompt that was refused costs nothing."""
    usage = stream.usage
    read = 0 if stream.times.joined is None else usage.prompt_tokens
    cached, made = usage.cached_tokens, usage.output_tokens
    details = ev.InputDetails(read, 0, 0, cached, ev.CachedDetails(cached))
    return ev.Usage(read + made, read, made, details, ev.OutputDetails(made))


def status_error(error: Refusal) -> ev.StatusError:
    """A failure as `status_details.error`."""
    fields = WireError.of(error).fields()
    return ev.StatusError(fields.type, fields.code, fields.message)
