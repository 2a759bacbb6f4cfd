"""Bytes for the tests of the load client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec


def cuts(data: bytes) -> Iterator[list[bytes]]:
    """The same bytes as they may arrive: whole, byte by byte, and in two parts at every place."""
    yield [data]
    yield [data[place : place + 1] for place in range(len(data))]
    for place in range(1, len(data)):
        yield [data[:place], data[place:]]


def chunked(pieces: Sequence[bytes], head: bytes = b"") -> bytes:
    """An HTTP answer with one chunk for each piece."""
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + head + b"\r\n" + body + b"0\r\n\r\n"


def event(told: object) -> bytes:
    """One SSE event."""
    return b"data: " + msgspec.json.encode(told) + b"\n\n"


def chat(text: str | None, role: str | None = None, finish: str | None = None) -> bytes:
    """One chat chunk."""
    delta = {} if text is None else {"content": text}
    if role:
        delta["role"] = role
    return event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def usage(prompt: int, output: int) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": output}})


DONE = b"data: [DONE]\n\n"
