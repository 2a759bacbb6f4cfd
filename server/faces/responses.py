"""From a token stream to Responses events: one pure map, shared by the socket and the HTTP face.

Knows the order of events, their numbers and the response object; knows no transport. Nothing is told before
the prompt is ready (`times.joined`), so a request that cannot run is still refused, and no response exists.
"""

from __future__ import annotations

from msgspec import UNSET, UnsetType

from headrace.runtime.interface import FinishReason, Message, Refusal, TokenStream
from headrace.server.faces.settings import new_id
from headrace.server.faces.tape import Template
from headrace.server.protocol import response_events as ev
from headrace.server.protocol.codec import compact, encode
from headrace.server.protocol.errors import STATUS
from headrace.server.protocol.responses import ResponseRequest

INSTRUCTIONS_ECHO = 64 << 10  # longer ones are not repeated three times; the field is null then

NUMBER_IS, DELTA_IS = '"sequence_number":', '"delta":'

_ERROR_CODES = {"rate_limit_exceeded": "rate_limit_exceeded", "server_error": "server_error"}


_TERMINAL: dict[str, type[ev.Completed | ev.Incomplete | ev.Failed]] = {
    "completed": ev.Completed,
    "incomplete": ev.Incomplete,
    "cancelled": ev.Incomplete,
    "failed": ev.Failed,
}


class ResponseRun:
    """One response from its first event to its terminal one.

    `events()` returns what can be told now. `done` is true once the terminal event was returned; `refusal` is
    set, with no event ever returned, if the request failed before it began.
    """

    def __init__(
        self,
        request: ResponseRequest,
        stream: TokenStream,
        *,
        created: float,
        model: str,
        lane: ev.Lane = UNSET,
    ) -> None:
        self.id = new_id("resp")
        self.item_id = new_id("msg")
        self.request = request
        self.stream = stream
        self.lane = lane
        self.created = int(created)
        self.model = model
        self.forked_from: ev.ForkedFrom | UnsetType = UNSET
        self.announced = (
            False  # its id was told before it began: then even a refusal is an end of this response
        )
        self.began = False
        self.done = False
        self.refusal: Refusal | None = None
        self.final: ev.Response | None = None
        self.steered = (
            ""  # the status of an item that a steer cuts: then that, not the client, cancels the stream
        )
        self.delta_template: Template = ("", "", "")  # of the deltas that `next_delta` makes
        self._open = False
        self._texts: list[str] = []
        self._sequence = 0

    @property
    def text(self) -> str:
        """What has been told of the answer so far."""
        return "".join(self._texts)

    @property
    def may_stop(self) -> bool:
        """Whether the answer can be cut after what was told: text can."""
        return True

    @property
    def last_text(self) -> str:
        """The text of the delta that was told last."""
        return self._texts[-1]

    @property
    def answer(self) -> tuple[Message, ...]:
        """The answer as a turn of the conversation."""
        return (Message("assistant", self.text),)

    @property
    def usage(self) -> ev.Usage:
        """The token counts so far."""
        return usage_of(self.stream)

    def move(self, lane: ev.Lane) -> None:
        """Events carry this lane from now on."""
        self.lane = lane
        self.delta_template = ("", "", "")

    def next_number(self) -> int:
        """The next `sequence_number` of this response: from 0, no gaps."""
        number = self._sequence
        self._sequence += 1
        return number

    def events(self) -> list[ev.Event]:
        """Everything new, in order. Entries that wait together become one delta."""
        events: list[ev.Event] = []
        if self.done or self.refusal is not None:
            return events
        stream = self.stream
        if not self.began:
            if stream.times.joined is None and stream.head == 0:
                if stream.finish is None:
                    return events
                if stream.finish is FinishReason.ERROR and not self.announced:
                    self.refusal = stream.error
                    return events
            self._begin(events)
        text = stream.take_text()
        if stream.ended:
            text += stream.tail
        if text:
            self._delta(text, events)
        if stream.ended:
            self._end(events)
        return events

    def next_delta(self) -> str | None:
        """What `events()` would return, where that is one delta in the middle of the answer, as JSON; else None.

        Nearly every event is one of these, and all of a response differ in number and text alone."""
        stream = self.stream
        if not self._open or stream.finish is not None or stream.head == stream.sent:
            return None
        text = stream.take_text()
        if not text:
            return None
        if not self.delta_template[0]:
            self.delta_template = self._cut_delta()
        begin, middle, end = self.delta_template
        self._texts.append(text)
        number = self._sequence
        self._sequence = number + 1
        return f"{begin}{number}{middle}{encode(text).decode()}{end}"

    def snapshot(self, status: str = "in_progress") -> ev.Response:
        """The response object of this moment, before the end."""
        return self._response(status, [])

    def _cut_delta(self) -> Template:
        """The JSON of a delta before its number, between number and text, and after the text. The names cannot
        stand in a value: the quotation marks in there would be escaped."""
        sample = encode(ev.TextDelta(0, self.item_id, 0, 0, "", (), self.lane)).decode()
        begin, found, rest = sample.partition(NUMBER_IS + "0")
        middle, also, end = rest.partition(DELTA_IS + '""')
        assert found and also
        return begin + NUMBER_IS, middle + DELTA_IS, end

    # -- pieces of the golden sequences ------------------------------------------------------------------------

    def _begin(self, events: list[ev.Event]) -> None:
        self.began = True
        response = self._response("in_progress", [])
        events.append(ev.Created(self.next_number(), response, self.lane))
        events.append(ev.InProgress(self.next_number(), response, self.lane))

    def _open_item(self, events: list[ev.Event]) -> None:
        self._open = True
        item = ev.MessageItem(self.item_id, "message", "assistant", "in_progress", [])
        events.append(ev.ItemAdded(self.next_number(), 0, item, self.lane))
        events.append(ev.PartAdded(self.next_number(), self.item_id, 0, 0, ev.OutputText(""), self.lane))

    def _delta(self, text: str, events: list[ev.Event]) -> None:
        if not self._open:
            self._open_item(events)
        self._texts.append(text)
        events.append(ev.TextDelta(self.next_number(), self.item_id, 0, 0, text, (), self.lane))

    def _close_item(self, status: str, events: list[ev.Event]) -> None:
        text = self.text
        part = ev.OutputText(text)
        events.append(ev.TextDone(self.next_number(), self.item_id, 0, 0, text, (), self.lane))
        events.append(ev.PartDone(self.next_number(), self.item_id, 0, 0, part, self.lane))
        item = ev.MessageItem(self.item_id, "message", "assistant", status, [part])
        events.append(ev.ItemDone(self.next_number(), 0, item, self.lane))

    def _end(self, events: list[ev.Event]) -> None:
        finish = self.stream.finish
        complete = finish is FinishReason.STOP
        if not self._open and finish in (FinishReason.STOP, FinishReason.LENGTH):
            self._open_item(events)  # an answer without text is still an answer
        item_status = "completed" if complete else self.steered or "incomplete"
        output = []
        if self._open:
            part = ev.OutputText(self.text)
            output = [ev.MessageItem(self.item_id, "message", "assistant", item_status, [part])]
            if finish is not FinishReason.ERROR:
                self._close_item(item_status, events)
        if finish is FinishReason.STOP:
            self._close("completed", events, output)
        elif finish is FinishReason.LENGTH:
            self._close("incomplete", events, output, incomplete=ev.IncompleteDetails("max_output_tokens"))
        elif finish is FinishReason.CANCELLED and self.steered:
            self._close("incomplete", events, output, incomplete=ev.IncompleteDetails("steered"))
        elif finish is FinishReason.CANCELLED:
            self._close("cancelled", events, output)
        else:
            assert self.stream.error is not None, "a stream that ends in ERROR says why"
            self._close("failed", events, output, error=self.stream.error)

    def _close(
        self,
        status: str,
        events: list[ev.Event],
        output: list[ev.MessageItem] | None = None,
        incomplete: ev.IncompleteDetails | None = None,
        error: Refusal | None = None,
    ) -> None:
        """The terminal event."""
        said = None if error is None else response_error(error)
        self.final = self._response(status, output or [], incomplete=incomplete, error=said)
        terminal = _TERMINAL[status]
        events.append(terminal(self.next_number(), self.final, self.lane))
        self._open = False
        self.done = True

    def _response(
        self,
        status: str,
        output: list[ev.MessageItem],
        incomplete: ev.IncompleteDetails | None = None,
        error: ev.ResponseError | None = None,
    ) -> ev.Response:
        request = self.request
        params = self.stream.params
        reasoning = request.reasoning
        instructions = request.instructions
        if instructions is not None and len(instructions) > INSTRUCTIONS_ECHO:
            instructions = None
        return ev.Response(
            id=self.id,
            created_at=self.created,
            model=self.model,
            output=output,
            parallel_tool_calls=request.parallel_tool_calls is not False,
            tool_choice="none" if compact(request.tool_choice) == '"none"' else "auto",
            status=status,
            error=error,
            incomplete_details=incomplete,
            instructions=instructions,
            metadata=request.metadata or {},
            temperature=params.temperature if params else _given(request.temperature),
            top_p=params.top_p if params else _given(request.top_p),
            previous_response_id=request.previous_response_id,
            max_output_tokens=request.max_output_tokens,
            reasoning=ev.ReasoningEcho(
                reasoning.effort if reasoning else None,
                # "none" is asked for by some clients, but strict models do not know it.
                reasoning.summary if reasoning and reasoning.summary != "none" else None,
            ),
            truncation=request.truncation or "disabled",
            store=request.store is not False,
            usage=None if status in ("queued", "in_progress") else self.usage,
            service_tier=UNSET if request.service_tier is None else "default",
            x_forked_from=self.forked_from,
        )


def usage_of(stream: TokenStream) -> ev.Usage:
    """The token counts of a stream in the words of the Responses API."""
    usage = stream.usage
    return ev.Usage(
        usage.prompt_tokens,
        ev.InputDetails(usage.cached_tokens),
        usage.output_tokens,
        ev.OutputDetails(),
        usage.prompt_tokens + usage.output_tokens,
    )


def response_error(error: Refusal) -> ev.ResponseError:
    """A failure as `response.error`: a code that strict clients know, and the real one beside it."""
    code = _ERROR_CODES.get(error.code)
    if code is None:
        code = "invalid_prompt" if STATUS[error.code] < 500 else "server_error"
    return ev.ResponseError(code, error.message, UNSET if code == error.code else error.code)


def _given(value: float | None) -> float:
    return 1.0 if value is None else value
