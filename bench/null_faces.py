"""What the null server says: the bytes of each event of an answer, by face. Knows neither sockets nor clocks."""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.bench import frames


class Question(msgspec.Struct):
    """The fields of all faces that the null server looks at."""

    model: str = "null"
    messages: list[dict[str, Any]] | None = None
    input: str | list[dict[str, Any]] | None = None
    prompt: str | list[int] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    stream_options: dict[str, Any] | None = None
    stream_id: str | None = None
    type: str = ""
    response_id: str | None = None
    previous_response_id: str | None = None

    @property
    def tokens(self) -> int:
        """How many were asked for."""
        return self.max_output_tokens or self.max_completion_tokens or self.max_tokens or 16

    @property
    def last(self) -> str:
        """The last thing said, as text."""
        said = self.messages or self.input or self.prompt or ""
        if isinstance(said, str):
            return said
        final = said[-1]
        return str(final.get("content", "")) if isinstance(final, dict) else f"{len(said)} ids"

    @property
    def prompt_tokens(self) -> int:
        """A word is a token, each message has three more; ids are what they are."""
        if isinstance(self.prompt, list):
            return len(self.prompt)
        said = self.messages or self.input or self.prompt or ""
        texts = [said] if isinstance(said, str) else [str(message.get("content", "")) for message in said]
        return sum(len(text.split()) + 3 for text in texts)

    def option(self, name: str) -> bool:
        return bool((self.stream_options or {}).get(name))


class Face:
    """Renders one answer. Every method returns whole events as bytes, b"" for nothing."""

    def __init__(self, question: Question, number: int, told: bool) -> None:
        self.question = question
        self.number = number
        self.told = told  # usage is told
        self.text: list[str] = []

    def opening(self, role_first: bool) -> bytes:
        """What comes before any token."""
        raise NotImplementedError

    def delta(self, text: str, sent: int) -> bytes:
        """Text that brings the answer to `sent` tokens; "" makes an empty event."""
        raise NotImplementedError

    def closing(self, sent: int, finish: str) -> bytes:
        """What comes after the last token. finish: length or cancelled."""
        raise NotImplementedError

    def failing(self, message: str) -> bytes:
        """An error in the middle of an answer."""
        raise NotImplementedError


class ChatFace(Face):
    """Chunks of chat, or of completions where the question has a prompt."""

    def chunk(self, choices: list[dict[str, Any]], **fields: Any) -> bytes:
        plain = self.question.prompt is not None
        told = {
            "id": f"answer-{self.number}",
            "object": "text_completion" if plain else "chat.completion.chunk",
            "created": 0,
            "model": self.question.model,
            "choices": choices,
        } | fields
        return b"data: " + msgspec.json.encode(told) + b"\n\n"

    def usage(self, sent: int) -> dict[str, Any]:
        prompt = self.question.prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": sent, "total_tokens": prompt + sent}

    def choice(self, text: str | None, finish: str | None = None, **delta: str) -> dict[str, Any]:
        if self.question.prompt is not None:
            return {"index": 0, "text": text or "", "finish_reason": finish}
        if text is not None:
            delta["content"] = text
        return {"index": 0, "delta": delta, "finish_reason": finish}

    def opening(self, role_first: bool) -> bytes:
        return self.chunk([self.choice("", role="assistant")]) if role_first else b""

    def delta(self, text: str, sent: int) -> bytes:
        self.text.append(text)
        if self.told and self.question.option("continuous_usage_stats"):
            return self.chunk([self.choice(text)], usage=self.usage(sent))
        return self.chunk([self.choice(text)])

    def closing(self, sent: int, finish: str) -> bytes:
        last = self.chunk([self.choice(None, finish)])
        if self.told and self.question.option("include_usage"):
            last += self.chunk([], usage=self.usage(sent))
        return last + b"data: [DONE]\n\n"

    def failing(self, message: str) -> bytes:
        error = {"error": {"message": message, "type": "server_error", "param": None, "code": "null_error"}}
        return b"data: " + msgspec.json.encode(error) + b"\n\ndata: [DONE]\n\n"


class ResponsesFace(Face):
    """Events of /v1/responses. `socket`: as websocket messages, with the lane if there is one."""

    def __init__(self, question: Question, number: int, told: bool, socket: bool) -> None:
        super().__init__(question, number, told)
        self.socket = socket
        self.sequence = 0
        self.id = f"resp_{number}"

    def event(self, kind: str, **fields: Any) -> bytes:
        told: dict[str, Any] = {"type": kind, "sequence_number": self.sequence}
        self.sequence += 1
        if self.question.stream_id is not None:
            told["stream_id"] = self.question.stream_id
        data = msgspec.json.encode(told | fields)
        if self.socket:
            return frames.frame(frames.TEXT, data, masked=False)
        return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"

    def response(self, **fields: Any) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "response",
            "created_at": 0,
            "model": self.question.model,
            "output": [],
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "usage": None,
        } | fields

    def opening(self, role_first: bool) -> bytes:
        item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
        told = self.event("response.created", response=self.response())
        told += self.event("response.in_progress", response=self.response())
        told += self.event("response.output_item.added", output_index=0, item=item)
        return told

    def delta(self, text: str, sent: int) -> bytes:
        self.text.append(text)
        return self.event(
            "response.output_text.delta", item_id="msg_1", output_index=0, content_index=0, delta=text
        )

    def closing(self, sent: int, finish: str) -> bytes:
        text = "".join(self.text)
        part = {"type": "output_text", "text": text, "annotations": []}
        item = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "status": "incomplete",
            "content": [part],
        }
        prompt = self.question.prompt_tokens
        usage = {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": sent,
            "total_tokens": prompt + sent,
        }
        told = self.event("response.output_text.done", item_id="msg_1", text=text)
        told += self.event("response.output_item.done", output_index=0, item=item)
        told += self.event(
            "response.incomplete",
            response=self.response(
                status="incomplete" if finish == "length" else "cancelled",
                output=[item],
                incomplete_details={"reason": "max_output_tokens"} if finish == "length" else None,
                usage=usage if self.told else None,
            ),
        )
        return told

    def failing(self, message: str) -> bytes:
        error = {"code": "server_error", "message": message}
        return self.event("response.failed", response=self.response(status="failed", error=error))


def refusal(status: int) -> bytes:
    """The body of an error answer."""
    return msgspec.json.encode(
        {"error": {"message": "refused as scripted", "type": "null", "param": None, "code": f"null_{status}"}}
    )
