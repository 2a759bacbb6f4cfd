"""HTTP/1.1 as a load client needs it: request bytes, and the body of an answer piece by piece as it arrives.

Knows bytes only. Takes framing off at once, because the end of an answer decides when the next request goes out;
what the body says is read after the run.
"""

from __future__ import annotations

import base64
import resource
from typing import Literal, NamedTuple


class WireError(ValueError):
    """Bytes that no HTTP or websocket server sends."""


def allow_sockets() -> None:
    """Let this process open as many sockets as the system lets it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Target(NamedTuple):
    """Where a server listens and how it wants to be spoken to. `address`: resolved, with the port; `prefix`: the
    path before /v1; `key`: the API key, empty without one."""

    host: str
    address: str
    port: int
    prefix: str = ""
    key: str = ""

    def lines(self) -> str:
        """The header lines that every request begins with."""
        secret = f"Authorization: Bearer {self.key}\r\n" if self.key else ""
        return f"Host: {self.host}\r\n{secret}"

    def post(self, path: str, body: bytes) -> bytes:
        """A request that wants an event stream as its answer and keeps the connection."""
        head = (
            f"POST {self.prefix}{path} HTTP/1.1\r\n{self.lines()}Accept: text/event-stream\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def get(self, path: str) -> bytes:
        return f"GET {self.prefix}{path} HTTP/1.1\r\n{self.lines()}\r\n".encode()

    def upgrade(self, path: str, nonce: bytes) -> bytes:
        """The opening handshake of a websocket; `nonce` has 16 bytes."""
        key = base64.b64encode(nonce).decode()
        return (
            f"GET {self.prefix}{path} HTTP/1.1\r\n{self.lines()}Upgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
        ).encode()


MAX_HEAD = 64 << 10
Framing = Literal["head", "chunk", "line", "skip", "length", "close", "trailers"]


class AnswerReader:
    """Reads answers of one connection, one after the other: `feed` bytes as they come, `reset` before each request.

    status: 0 until the head is complete. ended: the last byte of the answer was fed. keeps: the connection can
    take another request after this one. Interim (1xx) answers are passed over, except 101, which ends the answer.
    """

    def __init__(self) -> None:
        self.rest = b""
        self.reset()

    def reset(self) -> None:
        self.status = 0
        self.reason = ""
        self.headers: dict[str, str] = {}
        self.ended = False
        self.keeps = True
        self._state: Framing = "head"
        self._need = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Body bytes that `data` brought, without framing. Bytes behind the end stay in `rest`."""
        if self.rest:
            data, self.rest = self.rest + data, b""
        pieces: list[bytes] = []
        at, size = 0, len(data)
        while at < size and not self.ended:
            state = self._state
            if state == "line":
                end = data.find(b"\r\n", at)
                if end < 0:
                    break
                try:
                    need = int(data[at:end].partition(b";")[0], 16)
                except ValueError:
                    raise WireError(f"a chunk of size {data[at : at + 20]!r}") from None
                at = end + 2
                self._need = need
                self._state = "chunk" if need else "trailers"
            elif state == "chunk":
                took = data[at : at + self._need]
                pieces.append(took)
                at += len(took)
                self._need -= len(took)
                if not self._need:
                    self._state, self._need = "skip", 2
            elif state == "skip":
                took = data[at : at + self._need]
                at += len(took)
                self._need -= len(took)
                if not self._need:
                    self._state = "line"
            elif state == "length":
                took = data[at : at + self._need]
                pieces.append(took)
                at += len(took)
                self._need -= len(took)
                self.ended = not self._need
            elif state == "close":
                pieces.append(data[at:] if at else data)
                at = size
            elif state == "trailers":
                end = data.find(b"\r\n", at)
                if end < 0:
                    break
                self.ended = end == at
                at = end + 2
            else:
                end = data.find(b"\r\n\r\n", at)
                if end < 0:
                    if size - at > MAX_HEAD:
                        raise WireError("an answer's head without an end")
                    break
                self._read_head(data[at:end])
                at = end + 4
        self.rest = data[at:] if at < size else b""
        return pieces

    def end_of_file(self) -> bool:
        """The server closed the connection; true if that is how this answer ends."""
        if self._state == "close" and not self.ended:
            self.ended = True
            return True
        return self.ended

    def _read_head(self, head: bytes) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        version, _, told = first.partition(" ")
        code, _, self.reason = told.partition(" ")
        if not version.startswith("HTTP/1.") or not (code.isdecimal() and len(code) == 3):
            raise WireError(f"not an HTTP answer: {first[:80]!r}")
        status = int(code)
        if 100 <= status < 200 and status != 101:
            return
        self.status = status
        self.headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()
        connection = self.headers.get("connection", "").lower()
        self.keeps = "close" not in connection and (version != "HTTP/1.0" or "keep-alive" in connection)
        if status in (101, 204, 304):
            self.ended = True
        elif "chunked" in self.headers.get("transfer-encoding", "").lower():
            self._state = "line"
        elif "content-length" in self.headers:
            length = self.headers["content-length"]
            if not length.isdecimal():
                raise WireError(f"a content-length of {length!r}")
            self._state, self._need = "length", int(length)
            self.ended = not self._need
        else:
            self._state, self.keeps = "close", False
