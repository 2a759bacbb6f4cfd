"""What the events of an answer say: when its text came, how many tokens that was, how it ended.

Works on recorded bytes and stamps. Knows the OpenAI dialects: chat and completion chunks, Responses events.

How tokens are counted. An event with text counts as one token; role-only and empty events count as none. When the
server says totals on every chunk (`continuous_usage_stats`), those decide. Otherwise `usage` at the end decides: if
it says more than there were events, some events carried several tokens, and the surplus goes to them in proportion
to their bytes of text, at least one each. Where exactly it goes moves no gap: an event of n tokens is one gap and
n - 1 zeros anywhere. If usage says fewer, some events were parts of one token: those that followed the one before
most closely count for nothing, so that what is left are the longer gaps. The first event with text always counts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from headrace.bench.record import Chunk

BLANK_LINE = re.compile(rb"\r?\n\r?\n")


class EventReader:
    """Splits an event stream; an event has come when its blank line has."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, at_ns: int, piece: bytes) -> list[tuple[int, bytes]]:
        """The `data` of every event that `piece` completed, each with `at_ns`. Comments and [DONE] included."""
        seen = max(0, len(self._rest) - 3)
        data = self._rest + piece if self._rest else piece
        found: list[tuple[int, bytes]] = []
        begin = 0
        while end := BLANK_LINE.search(data, max(seen, begin)):
            lines = data[begin : end.start()].splitlines()
            told = [line[5:].lstrip(b" ") for line in lines if line.startswith(b"data:")]
            if told:
                found.append((at_ns, told[0] if len(told) == 1 else b"\n".join(told)))
            begin = end.end()
        self._rest = data[begin:]
        return found


class Text(NamedTuple):
    """An event with text: when it came, its bytes of text, and the tokens of the answer so far if it said so."""

    at_ns: int
    size: int
    total: int | None = None


class Details(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """Both spellings: `prompt_tokens` of chat, `input_tokens` of Responses."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: Details | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: Details | None = None


class Reading:
    """What was read of one answer so far. `over`: its last event came. text: what an assistant said, without its
    reasoning."""

    def __init__(self) -> None:
        self.texts: list[Text] = []
        self.said: list[str] = []
        self.prompt_tokens: int | None = None
        self.output_tokens: int | None = None
        self.cached_tokens: int | None = None
        self.finish: str | None = None
        self.error: str | None = None
        self.response_id: str | None = None
        self.over = False

    def read(self, at_ns: int, payload: bytes) -> None:
        """Take in one event."""
        raise NotImplementedError

    @property
    def text(self) -> str:
        return "".join(self.said)

    def tokens_so_far(self) -> int:
        """Tokens that have come, as far as can be known before the end."""
        total = self.texts[-1].total if self.texts else 0
        return len(self.texts) if total is None else total

    def chunks(self) -> list[Chunk]:
        """The chunks of the whole answer, counted as this module says."""
        return count(self.texts, self.output_tokens)

    def _take_usage(self, usage: Usage) -> None:
        prompt = usage.prompt_tokens if usage.prompt_tokens is not None else usage.input_tokens
        output = usage.completion_tokens if usage.completion_tokens is not None else usage.output_tokens
        details = usage.prompt_tokens_details or usage.input_tokens_details
        self.prompt_tokens = prompt if prompt is not None else self.prompt_tokens
        self.output_tokens = output if output is not None else self.output_tokens
        if details is not None and details.cached_tokens is not None:
            self.cached_tokens = details.cached_tokens


class Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Any] | None = None


class Choice(msgspec.Struct):
    delta: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class CompletionChunk(msgspec.Struct):
    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


class ChatReading(Reading):
    """Chunks of /v1/chat/completions and /v1/completions."""

    decoder = msgspec.json.Decoder(CompletionChunk)

    def read(self, at_ns: int, payload: bytes) -> None:
        if payload == b"[DONE]":
            self.over = True
            return
        try:
            chunk = self.decoder.decode(payload)
        except msgspec.DecodeError as error:
            self.error = f"unreadable event: {error}"
            return
        if chunk.error is not None:
            self.error = explain(chunk.error)
            return
        size = 0
        for choice in chunk.choices:
            if choice.finish_reason is not None:
                self.finish, self.over = choice.finish_reason, True
            if choice.text:
                self.said.append(choice.text)
                size += len(choice.text.encode())
            if (delta := choice.delta) is not None:
                if delta.content:
                    self.said.append(delta.content)
                for part in (delta.content, delta.reasoning_content or delta.reasoning):
                    size += len(part.encode()) if part else 0
                if delta.tool_calls:
                    size += len(msgspec.json.encode(delta.tool_calls))
        if chunk.usage is not None:
            self._take_usage(chunk.usage)
        if size:
            total = chunk.usage.completion_tokens if chunk.usage is not None else None
            self.texts.append(Text(at_ns, size, total))


class ResponseObject(msgspec.Struct):
    id: str = ""
    usage: Usage | None = None
    incomplete_details: dict[str, Any] | None = None
    status: str | None = None
    error: Any = None


class ResponseEvent(msgspec.Struct):
    type: str = ""
    delta: Any = None
    response: ResponseObject | None = None
    stream_id: str | None = None
    error: Any = None
    message: Any = None
    code: Any = None


class ResponsesReading(Reading):
    """Events of /v1/responses, over SSE or a websocket."""

    decoder = msgspec.json.Decoder(ResponseEvent)

    def read(self, at_ns: int, payload: bytes) -> None:
        if payload == b"[DONE]":
            return
        try:
            event = self.decoder.decode(payload)
        except msgspec.DecodeError as error:
            self.error = f"unreadable event: {error}"
            return
        self.take(at_ns, event)

    def take(self, at_ns: int, event: ResponseEvent) -> None:
        """Take in one decoded event."""
        if event.type.endswith(".delta"):
            if isinstance(event.delta, str) and event.delta:
                self.texts.append(Text(at_ns, len(event.delta.encode())))
                if event.type == "response.output_text.delta":
                    self.said.append(event.delta)
            return
        if event.type == "error":
            self.error, self.over = (
                explain(event.error or {"message": event.message, "code": event.code}),
                True,
            )
            return
        if event.response is None:
            return
        self.response_id = event.response.id or self.response_id
        if event.response.usage is not None:
            self._take_usage(event.response.usage)
        if event.type in TERMINAL:
            self.over = True
            reason = (event.response.incomplete_details or {}).get("reason")
            self.finish = {"max_output_tokens": "length"}.get(str(reason), reason and str(reason))
            if event.type == "response.completed":
                self.finish = "stop"
            elif event.response.status == "cancelled":
                self.finish = "cancelled"
            if event.type == "response.failed":
                self.error = explain(event.response.error or "the response failed")


TERMINAL = ("response.completed", "response.incomplete", "response.failed")


def explain(error: Any) -> str:
    """An error object of any server as one line."""
    if isinstance(error, dict):
        inner = error.get("error", error.get("detail"))
        if inner is not None:
            return explain(inner)
        code = error.get("code") or error.get("type")
        message = error.get("message") or error.get("msg") or str(error)
        return f"{code}: {message}"[:300] if code else str(message)[:300]
    if isinstance(error, list) and error:
        return explain(error[0])
    return str(error)[:300]


def explain_body(status: int, reason: str, body: bytes) -> str:
    """What an answer other than 200 says, as one line."""
    try:
        told = explain(msgspec.json.decode(body))
    except msgspec.DecodeError:
        told = body[:200].decode(errors="replace").strip() or reason
    return f"HTTP {status}: {told}".strip()


def count(texts: Sequence[Text], output_tokens: int | None) -> list[Chunk]:
    """Chunks with their tokens, as the module's docstring says; their sum is `output_tokens` where that is at all
    possible (no text, no chunk)."""
    if not texts:
        return []
    if all(text.total is not None for text in texts):
        counts, told = [], 0
        for text in texts:
            assert text.total is not None
            counts.append(max(text.total - told, 0))
            told = max(told, text.total)
        counts[0] = max(counts[0], 1)
        if output_tokens is not None:
            counts[-1] += max(0, output_tokens - sum(counts))
    elif output_tokens is None or output_tokens == len(texts):
        counts = [1] * len(texts)
    elif output_tokens > len(texts):
        counts = portions(output_tokens, [text.size for text in texts])
    else:
        counts = [1] * len(texts)
        # Ties go to the later one: the head of an answer is what people wait for.
        closest = sorted(range(1, len(texts)), key=lambda i: (texts[i].at_ns - texts[i - 1].at_ns, -i))
        for place in closest[: len(texts) - max(1, output_tokens)]:
            counts[place] = 0
    return [Chunk(text.at_ns, tokens) for text, tokens in zip(texts, counts, strict=True) if tokens]


def portions(total: int, sizes: Sequence[int]) -> list[int]:
    """`total` in whole portions of at least 1, as near to proportional to `sizes` as whole numbers allow."""
    extra, whole = total - len(sizes), sum(sizes)
    assert extra >= 0 and min(sizes) > 0
    found = [extra * size // whole for size in sizes]
    order = sorted(range(len(sizes)), key=lambda i: (-(extra * sizes[i] % whole), i))
    for place in order[: extra - sum(found)]:
        found[place] += 1
    return [1 + portion for portion in found]
