"""From a token stream to Responses events: one pure map, shared by the socket and the HTTP face.

Knows the order of events, their numbers and the response object; knows no transport. Nothing is told before
the prompt is ready (`times.joined`), so a request that cannot run is still refused, and no response exists.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import UNSET, UnsetType
from msgspec.structs import asdict

from headrace.runtime.interface import (
    FinishReason,
    Message,
    Receipt,
    Refusal,
    TextPiece,
    TokenStream,
    joined,
)
from headrace.server.faces.latency import tier_of
from headrace.server.faces.response_items import OpenCall, OpenMessage, Output
from headrace.server.faces.shapes import response_shape
from headrace.server.faces.tape import Template
from headrace.server.faces.telemetry import TELEMETRY, summary_of
from headrace.server.faces.token_logprobs import response_logprobs
from headrace.server.faces.tool_asks import response_tools
from headrace.server.ids import new_id
from headrace.server.protocol import response_events as ev
from headrace.server.protocol.codec import encode
from headrace.server.protocol.errors import STATUS
from headrace.server.protocol.responses import ResponseRequest

INSTRUCTIONS_ECHO = 64 << 10  # longer ones are not repeated three times; the field is null then

BEGINNING = 2  # events that say that a response has begun
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
        self.request = request
        self.tools = response_tools(request)
        _, self.format_echo = response_shape(request)
        seal = "reasoning.encrypted_content" in (request.include or ())
        self.output = Output(self.id, self.next_number, lane, self.tools.custom, seal)
        self.stream = stream
        self.lane = lane
        self.created = int(created)
        self.model = model
        self.forked_from: ev.ForkedFrom | UnsetType = UNSET
        self.certify: Callable[[], Receipt | None] | None = None  # at the end, for who asked for a receipt
        # Its id was told before it began: then even a refusal is an end of this response.
        self.announced = False
        self.began = False
        self.done = False
        self.refusal: Refusal | None = None
        self.final: ev.Response | None = None
        # The status of an item that a steer cuts: then that, not the client, cancels the stream.
        self.steered = ""
        self.delta_template: Template = ("", "", "")  # of the deltas that `next_delta` makes
        self.last_text = ""  # of the delta that `next_delta` made last
        self._delta_of: OpenMessage | None = None  # the item that the template belongs to
        self._sequence = 0

    @property
    def tail(self) -> str | None:
        """What was told of the message or the thought that is being written, "" between items; None where the
        answer must not be cut: inside a call, and behind one that the client will answer."""
        item = self.output.open
        if isinstance(item, OpenCall) or any(isinstance(each, ev.CALLS) for each in self.output.closed):
            return None
        return "" if item is None else item.text

    @property
    def answer(self) -> tuple[Message, ...]:
        """The answer as turns of the conversation."""
        return self.output.turns()

    @property
    def usage(self) -> ev.Usage:
        """The token counts so far."""
        return usage_of(self.stream)

    def move(self, lane: ev.Lane) -> None:
        """Events carry this lane from now on."""
        self.lane = self.output.lane = lane
        self._delta_of = None  # the next delta needs another template

    @property
    def said(self) -> int:
        """Events so far."""
        return self._sequence

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
        if stream.logprobs is not None:
            self._tell_each(events)
        else:
            pieces = stream.take_pieces()
            if stream.ended:
                pieces = joined([*pieces, *stream.tail_pieces])
            self.output.tell(pieces, events)
        if stream.ended:
            self._end(events)
        return events

    def _tell_each(self, events: list[ev.Event]) -> None:
        """Token by token, so that each item gets the logprobs of its own."""
        stream = self.stream
        entries = stream.take()
        stream.take_logprobs()  # they come with their entries here
        for entry in entries:
            pieces = entry.pieces
            if pieces is None:
                pieces = [TextPiece(entry.text)] if entry.text else []
            found = [] if entry.logprob is None else [entry.logprob.shown(self.request.top_logprobs or 0)]
            self.output.tell(pieces, events, response_logprobs(stream, found))
        if stream.ended and stream.tail_pieces:
            self.output.tell(stream.tail_pieces, events)

    def next_delta(self) -> str | None:
        """What `events()` would return, where that is one delta in the middle of a message, as JSON; else None.

        Nearly every event is one of these, and all of a response differ in number and text alone."""
        stream, message = self.stream, self.output.open
        if stream.logprobs is not None:
            return None
        if type(message) is not OpenMessage or stream.finish is not None or stream.head == stream.sent:
            return None
        text = stream.take_plain()
        if not text:
            return None
        if self._delta_of is not message:
            self._delta_of, self.delta_template = message, self._cut_delta(message)
        begin, middle, end = self.delta_template
        message.told(text)
        self.last_text = text
        number = self._sequence
        self._sequence = number + 1
        return f"{begin}{number}{middle}{encode(text).decode()}{end}"

    def snapshot(self, status: str = "in_progress") -> ev.Response:
        """The response object of this moment, before the end."""
        return self._response(status, [])

    def _cut_delta(self, message: OpenMessage) -> Template:
        """The JSON of a delta before its number, between number and text, and after the text. The names cannot
        stand in a value: the quotation marks in there would be escaped."""
        sample = encode(ev.TextDelta(0, message.id, message.index, 0, "", (), self.lane)).decode()
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

    def _end(self, events: list[ev.Event]) -> None:
        finish = self.stream.finish
        complete = finish is FinishReason.STOP
        if finish in (FinishReason.STOP, FinishReason.LENGTH):
            self.output.say_nothing(events)
        if finish is not FinishReason.ERROR:
            self.output.close("completed" if complete else self.steered or "incomplete", events)
        output = self.output.items()
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
        output: list[ev.OutputItem] | None = None,
        incomplete: ev.IncompleteDetails | None = None,
        error: Refusal | None = None,
    ) -> None:
        """The terminal event."""
        said = None if error is None else response_error(error)
        self.final = self._response(status, output or [], incomplete=incomplete, error=said)
        terminal = _TERMINAL[status]
        events.append(terminal(self.next_number(), self.final, self.lane))
        self.done = True

    def _response(
        self,
        status: str,
        output: list[ev.OutputItem],
        incomplete: ev.IncompleteDetails | None = None,
        error: ev.ResponseError | None = None,
    ) -> ev.Response:
        request = self.request
        params = self.stream.params
        receipt: ev.Receipt | UnsetType = UNSET
        if self.certify is not None and self.stream.finish is not None and (found := self.certify()):
            receipt = ev.Receipt(**asdict(found))
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
            tool_choice=self.tools.choice_echo,
            tools=self.tools.echo,
            status=status,
            error=error,
            incomplete_details=incomplete,
            instructions=instructions,
            metadata=self._metadata(status),
            temperature=params.temperature if params else _given(request.temperature),
            top_p=params.top_p if params else _given(request.top_p),
            top_logprobs=request.top_logprobs or 0,
            previous_response_id=request.previous_response_id,
            max_output_tokens=request.max_output_tokens,
            reasoning=ev.ReasoningEcho(
                reasoning.effort if reasoning else None,
                # "none" is asked for by some clients, but strict models do not know it.
                reasoning.summary if reasoning and reasoning.summary != "none" else None,
            ),
            text=ev.TextEcho(self.format_echo),
            truncation=request.truncation or "disabled",
            store=request.store is not False,
            usage=None if status in ("queued", "in_progress") else self.usage,
            service_tier=tier_of(request) or UNSET,
            x_forked_from=self.forked_from,
            x_receipt=receipt,
        )

    def _metadata(self, status: str) -> dict[str, str]:
        given, meter = self.request.metadata or {}, self.stream.meter
        if meter is None or status in ("queued", "in_progress"):
            return given
        return {**given, TELEMETRY: encode(summary_of(self.stream, meter)).decode()}


def usage_of(stream: TokenStream) -> ev.Usage:
    """The token counts of a stream in the words of the Responses API."""
    usage = stream.usage
    return ev.Usage(
        usage.prompt_tokens,
        ev.InputDetails(usage.cached_tokens),
        usage.output_tokens,
        ev.OutputDetails(usage.reasoning_tokens),
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
