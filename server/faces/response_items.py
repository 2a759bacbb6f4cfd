"""What one response says → its items and their events. Knows the order inside an item; knows no response object.

Items follow one another: one is open at a time, and its index rises with each. Text after a call is a message of
its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from msgspec import UNSET

from headrace.runtime.interface import (
    CallArguments,
    CallBegin,
    CallEnd,
    Message,
    Piece,
    ReasoningPiece,
    TextInput,
    TextPiece,
    ToolCall,
)
from headrace.server.faces.item_ids import output_id
from headrace.server.faces.tool_asks import text_arguments
from headrace.server.faces.tool_items import sealed
from headrace.server.ids import new_id
from headrace.server.protocol import response_events as ev
from headrace.server.protocol.logprobs import TokenLogprobPart


class Output:
    """The items of one response, in the order of their indices.

    response_id: whose items they are. number() gives the next sequence number. custom: names of tools that take
    free text. seal: reasoning items carry the blob that a client can send back.
    """

    def __init__(
        self,
        response_id: str,
        number: Callable[[], int],
        lane: ev.Lane = UNSET,
        custom: Collection[str] = (),
        seal: bool = False,
    ) -> None:
        self.response_id = response_id
        self.number = number
        self.lane = lane
        self.custom = custom
        self.seal = seal
        self.closed: list[ev.OutputItem] = []
        self.open: OpenMessage | OpenReasoning | OpenCall | None = None
        self._logprobs: list[TokenLogprobPart] = []  # of tokens whose text may still become part of a message

    def tell(
        self, pieces: Sequence[Piece], events: list[ev.Event], logprobs: Sequence[TokenLogprobPart] = ()
    ) -> None:
        """The events of more that was said. logprobs: of the tokens that said it. They belong to the message that
        says their text, also where it was held back; those of thoughts and calls are told nowhere."""
        if not isinstance(self.open, OpenMessage) and any(isinstance(piece, TextPiece) for piece in pieces):
            self._logprobs.clear()  # what was held back before a message ended a thought or a call
        self._logprobs += logprobs
        for piece in pieces:
            match piece:
                case TextPiece():
                    message = self.open
                    if not isinstance(message, OpenMessage):
                        message = OpenMessage(self)
                        self._follow(message, events)
                    message.add(piece.text, events, self.take_logprobs())
                    continue
                case ReasoningPiece():
                    if not isinstance(self.open, OpenReasoning):
                        self._follow(OpenReasoning(self), events)
                case CallBegin():
                    self._follow(OpenCall(self, piece.name), events)
                    continue
                case CallEnd():
                    self.close("completed" if piece.whole else "incomplete", events)
                    continue
                case CallArguments():
                    assert isinstance(self.open, OpenCall), (
                        "arguments come between the begin and the end of a call"
                    )
            assert isinstance(self.open, OpenReasoning | OpenCall)
            self.open.add(piece.text, events)
        if pieces and not isinstance(pieces[-1], TextPiece):
            self._logprobs.clear()

    def place(self, prefix: str) -> tuple[int, str]:
        """The index of the item that follows the open one, and its id."""
        index = len(self.closed) + (self.open is not None)
        return index, output_id(prefix, self.response_id, index)

    def take_logprobs(self) -> tuple[TokenLogprobPart, ...]:
        """Those that were told with no text yet."""
        if not self._logprobs:
            return ()
        found = tuple(self._logprobs)
        self._logprobs.clear()
        return found

    def say_nothing(self, events: list[ev.Event]) -> None:
        """An answer without a word is still an answer: one empty message, if there is no item at all."""
        if self.open is None and not self.closed:
            self._follow(OpenMessage(self), events)

    def close(self, status: str, events: list[ev.Event]) -> None:
        """End the open item, if there is one. status: completed or incomplete."""
        if self.open is not None:
            self.closed.append(self.open.end(status, events))
            self.open = None

    def items(self) -> list[ev.OutputItem]:
        """Everything told so far, the open item as incomplete."""
        return [*self.closed, *([] if self.open is None else [self.open.item("incomplete")])]

    def turns(self) -> tuple[Message, ...]:
        """The answer as turns of the conversation: what templates can show. Calls that were cut off are left out:
        nobody can answer them."""
        turns: list[Message] = []
        thought = text = ""
        calls: list[ToolCall] = []
        for item in self.items():
            match item:
                case ev.ReasoningItem():
                    thought += "".join(part.text for part in item.content)
                case ev.MessageItem():
                    if calls:
                        turns.append(Message("assistant", text, tuple(calls), reasoning=thought))
                        thought, text, calls = "", "", []
                    text += "".join(part.text for part in item.content)
                case ev.FunctionCallItem() if item.status == "completed":
                    calls.append(ToolCall(item.call_id, item.name, item.arguments))
                case ev.CustomCallItem() if item.status == "completed":
                    arguments = text_arguments(item.input)
                    calls.append(ToolCall(item.call_id, item.name, arguments, custom=True))
        return (*turns, Message("assistant", text, tuple(calls), reasoning=thought))

    def _follow(self, item: OpenMessage | OpenReasoning | OpenCall, events: list[ev.Event]) -> None:
        self.close("completed", events)
        self.open = item
        item.begin(events)


class OpenMessage:
    """A message while it is written."""

    def __init__(self, output: Output) -> None:
        self.index, self.id = output.place("msg")
        self._output = output
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprobPart] = []

    def begin(self, events: list[ev.Event]) -> None:
        out = self._output
        item = ev.MessageItem(self.id, "assistant", "in_progress", [])
        events.append(ev.ItemAdded(out.number(), self.index, item, out.lane))
        events.append(ev.PartAdded(out.number(), self.id, self.index, 0, ev.OutputText(""), out.lane))

    def add(self, text: str, events: list[ev.Event], logprobs: tuple[TokenLogprobPart, ...] = ()) -> None:
        out = self._output
        self._texts.append(text)
        self._logprobs += logprobs
        events.append(ev.TextDelta(out.number(), self.id, self.index, 0, text, logprobs, out.lane))

    @property
    def text(self) -> str:
        """What was told of it so far."""
        return "".join(self._texts)

    def told(self, text: str) -> None:
        """`text` was told by somebody who writes its event himself."""
        self._texts.append(text)

    def end(self, status: str, events: list[ev.Event]) -> ev.OutputItem:
        out = self._output
        if found := out.take_logprobs():
            self.add("", events, found)  # of the token that ended the answer, which has no text
        item = self.item(status)
        (part,) = item.content
        events.append(ev.TextDone(out.number(), self.id, self.index, 0, part.text, part.logprobs, out.lane))
        events.append(ev.PartDone(out.number(), self.id, self.index, 0, part, out.lane))
        events.append(ev.ItemDone(out.number(), self.index, item, out.lane))
        return item

    def item(self, status: str) -> ev.MessageItem:
        part = ev.OutputText("".join(self._texts), logprobs=tuple(self._logprobs))
        return ev.MessageItem(self.id, "assistant", status, [part])


class OpenReasoning:
    """What the model thinks, while it does."""

    def __init__(self, output: Output) -> None:
        self.index, self.id = output.place("rs")
        self._output = output
        self._texts: list[str] = []

    def begin(self, events: list[ev.Event]) -> None:
        out = self._output
        item = ev.ReasoningItem(self.id, "in_progress", [])
        events.append(ev.ItemAdded(out.number(), self.index, item, out.lane))

    def add(self, text: str, events: list[ev.Event]) -> None:
        out = self._output
        self._texts.append(text)
        events.append(ev.ReasoningDelta(out.number(), self.id, self.index, 0, text, out.lane))

    @property
    def text(self) -> str:
        """What was told of it so far."""
        return "".join(self._texts)

    def end(self, status: str, events: list[ev.Event]) -> ev.OutputItem:
        out, item = self._output, self.item(status)
        events.append(ev.ReasoningDone(out.number(), self.id, self.index, 0, item.content[0].text, out.lane))
        events.append(ev.ItemDone(out.number(), self.index, item, out.lane))
        return item

    def item(self, status: str) -> ev.ReasoningItem:
        text = "".join(self._texts)
        blob = sealed(text) if self._output.seal else UNSET
        return ev.ReasoningItem(self.id, status, [ev.ReasoningText(text)], encrypted_content=blob)


class OpenCall:
    """A call while its arguments are written; those of a tool that takes free text are told as that text."""

    def __init__(self, output: Output, name: str) -> None:
        self._text = TextInput() if name in output.custom else None
        self.index, self.id = output.place("fc" if self._text is None else "ctc")
        self.call_id = new_id("call")
        self.name = name
        self._output = output
        self._arguments: list[str] = []

    def begin(self, events: list[ev.Event]) -> None:
        out = self._output
        events.append(ev.ItemAdded(out.number(), self.index, self.item("in_progress"), out.lane))

    def add(self, text: str, events: list[ev.Event]) -> None:
        self._arguments.append(text)
        self._tell(text if self._text is None else self._text.push(text), events)

    def end(self, status: str, events: list[ev.Event]) -> ev.OutputItem:
        out = self._output
        if self._text is not None:
            self._tell(self._text.finish(), events)
        item = self.item(status)
        if status == "completed":  # clients run the call when they are told that its arguments are done
            if isinstance(item, ev.CustomCallItem):
                events.append(ev.InputDone(out.number(), self.id, self.index, item.input, out.lane))
            else:
                done = ev.ArgumentsDone(
                    out.number(), self.id, self.index, self.name, item.arguments, out.lane
                )
                events.append(done)
        events.append(ev.ItemDone(out.number(), self.index, item, out.lane))
        return item

    def item(self, status: str) -> ev.FunctionCallItem | ev.CustomCallItem:
        if self._text is not None:
            return ev.CustomCallItem(self.id, self.call_id, self.name, self._text.text, status)
        arguments = "".join(self._arguments)
        return ev.FunctionCallItem(self.id, self.call_id, self.name, arguments, status)

    def _tell(self, text: str, events: list[ev.Event]) -> None:
        out = self._output
        if not text:
            return
        if self._text is None:
            events.append(ev.ArgumentsDelta(out.number(), self.id, self.index, text, out.lane))
        else:
            events.append(ev.InputDelta(out.number(), self.id, self.index, text, out.lane))
