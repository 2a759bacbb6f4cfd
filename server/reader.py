"""Bytes to HTTP/1.1 requests. h11 interprets; the scan in front of it only refuses.

Two readers of one message must never disagree about where it ends, so everything that servers and proxies are
known to read differently is refused here, before h11 sees it: bare LF, folded lines, control characters, two
framings at once, a coding other than one plain `chunked`. Knows bytes and limits; knows no route and no socket.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import h11

from headrace.server.config import Limits

SLICE = 16 << 10  # body bytes given to h11 at once: a chunk's size line that is longer shows as such

_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_VERSION = re.compile(rb" HTTP/1\.[01]\Z")
_DIGITS = re.compile(r"\A[0-9]{1,18}\Z")

# A second one of these would let two parts of the server read two different requests.
_SINGLE = frozenset(
    {
        "authorization",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "origin",
        "sec-websocket-key",
        "sec-websocket-version",
        "transfer-encoding",
        "x-api-key",
        "x-request-id",
    }
)


class BadRequest(Exception):
    """The bytes are no request that we take. The connection ends after the answer, which has this status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True)
class Head:
    """A request without its body. `target` is as sent; header names are lower case, repeated ones joined."""

    method: str
    target: str
    headers: dict[str, str]
    version: str  # "1.0" or "1.1"
    length: int | None  # content-length; None without one
    chunked: bool

    @property
    def has_body(self) -> bool:
        return self.chunked or bool(self.length)

    @property
    def keep_alive(self) -> bool:
        """False where the client, or its old protocol, expects the connection to end after the reply."""
        return self.version == "1.1" and "close" not in tokens(self.headers.get("connection", ""))

    @property
    def upgrades(self) -> bool:
        """A genuine WebSocket handshake; any other upgrade is ignored, as the protocol allows."""
        return (
            self.method == "GET"
            and self.version == "1.1"
            and "upgrade" in tokens(self.headers.get("connection", ""))
            and "websocket" in tokens(self.headers.get("upgrade", ""))
        )


def tokens(value: str) -> list[str]:
    """A comma-separated header value as lower-case items."""
    return [item for part in value.split(",") if (item := part.strip().lower())]


class RequestReader:
    """Reads one request after another from a buffer that its owner fills. Raises BadRequest and then is done.

    The owner calls `head(buffer)` until it returns a Head, then `body(buffer)` until `finished`, then `next()`.
    Consumed bytes are removed from the buffer; what follows the request stays in it.
    """

    __slots__ = (
        "_chunked",
        "_chunks",
        "_h11",
        "_limits",
        "_lines",
        "_parts",
        "_scanned",
        "_size",
        "_tail",
        "finished",
    )

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.next()

    def next(self) -> None:
        """Ready for the next request."""
        self._h11: h11.Connection | None = None
        self._scanned = 0  # everything before has been checked and ends with CRLF
        self._lines = 0
        self._parts: list[bytes] = []
        self._size = 0
        self._chunks = 0
        self._chunked = False
        self._tail = b""  # what h11 was given last, and the byte before it
        self.finished = False

    @property
    def size(self) -> int:
        """Body bytes held."""
        return self._size

    # -- head ----------------------------------------------------------------------------------------------------

    def head(self, buffer: bytearray) -> Head | None:
        """The head at the front of `buffer`, or None until it is whole. Each byte is scanned once."""
        end = self._scan(buffer)
        if end is None:
            return None
        raw = bytes(buffer[:end])
        del buffer[:end]
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.max_header_line)
        self._h11.receive_data(raw)
        try:
            event = self._h11.next_event()
        except h11.RemoteProtocolError as error:
            raise BadRequest(400, f"not an HTTP request: {error}"[:200]) from None
        assert isinstance(event, h11.Request), "the head was whole"
        return self._checked(event, raw)

    def _scan(self, buffer: bytearray) -> int | None:
        limits = self._limits
        while True:
            newline = buffer.find(b"\n", self._scanned)
            line_end = len(buffer) if newline < 0 else newline + 1
            size = line_end - self._scanned
            if self._lines == 0:
                if size > limits.max_request_line:
                    raise BadRequest(414, f"the request line has more than {limits.max_request_line} bytes")
            elif size > limits.max_header_line:
                raise BadRequest(431, f"a header line has more than {limits.max_header_line} bytes")
            if line_end > limits.max_head:
                raise BadRequest(431, f"the request head has more than {limits.max_head} bytes")
            if newline < 0:
                # A line that can be no request line is refused now, not when the sender tires of it.
                if self._lines == 0 and _CONTROL.search(buffer[self._scanned : line_end].rstrip(b"\r")):
                    raise BadRequest(400, "not an HTTP request")
                return None
            line = bytes(buffer[self._scanned : line_end])
            if not line.endswith(b"\r\n"):
                raise BadRequest(400, "a line of the request does not end with CR LF")
            line = line[:-2]
            if not line and self._lines == 0:
                # One empty line before a request is the habit of some old clients after a body.
                if self._scanned:
                    raise BadRequest(400, "empty lines before the request")
                del buffer[:2]
                self._lines = -1
                continue
            if self._lines == -1:
                if not line:
                    raise BadRequest(400, "empty lines before the request")
                self._lines = 0
            self._scanned = line_end
            if not line:
                return line_end
            if _CONTROL.search(line):
                raise BadRequest(400, "control characters in the request head")
            if self._lines == 0:
                if not _VERSION.search(line):
                    raise BadRequest(400, "the request line does not end with HTTP/1.1")
            elif line[:1] in b" \t":
                raise BadRequest(400, "folded header lines are not accepted")
            elif self._lines > limits.max_headers:
                raise BadRequest(431, f"the request has more than {limits.max_headers} headers")
            self._lines += 1

    def _checked(self, request: h11.Request, raw: bytes) -> Head:
        headers: dict[str, str] = {}
        # From the lines themselves: h11 joins equal lengths into one, and then the doubt would be gone.
        for line in raw.decode("latin-1").split("\r\n")[1:-2]:
            name, _, value = line.partition(":")
            name, value = name.lower(), value.strip(" \t")
            if name in headers:
                if name in _SINGLE:
                    raise BadRequest(400, f"more than one {name} header")
                value = f"{headers[name]}, {value}"
            headers[name] = value
        version = request.http_version.decode("ascii")
        length = headers.get("content-length")
        coding = headers.get("transfer-encoding")
        if length is not None and not _DIGITS.match(length):
            raise BadRequest(400, "content-length is not a plain number")
        if coding is not None:
            if coding.lower() != "chunked" or version == "1.0":
                raise BadRequest(400, "the only transfer-encoding is chunked, in HTTP/1.1")
            if length is not None:
                raise BadRequest(400, "content-length and transfer-encoding exclude each other")
        self._chunked = coding is not None
        return Head(
            request.method.decode("ascii"),
            request.target.decode("ascii"),
            headers,
            version,
            None if length is None else int(length),
            self._chunked,
        )

    # -- body ----------------------------------------------------------------------------------------------------

    def body(self, buffer: bytearray, limit: int, events: int) -> bool:
        """Take body bytes from `buffer`; `finished` once it is whole. At most `events` chunks are read, so that
        one call never holds the loop for long: False if it stopped for that reason.
        """
        assert self._h11 is not None, "head() comes first"
        while events > 0:
            try:
                event = self._h11.next_event()
            except h11.RemoteProtocolError as error:
                raise BadRequest(400, f"not an HTTP body: {error}"[:200]) from None
            if event is h11.NEED_DATA:
                if not buffer:
                    return True
                # Only when h11 has used up the rest: so the end of the body always lies in the latest bytes.
                data = bytes(buffer[:SLICE])
                del buffer[:SLICE]
                self._h11.receive_data(data)
                self._tail = self._tail[-1:] + data
                continue
            if isinstance(event, h11.Data):
                self._size += len(event.data)
                self._chunks += bool(event.chunk_start)
                if self._size > limit:
                    raise BadRequest(413, f"the request body has more than {limit} bytes")
                if self._chunks > self._limits.max_chunks:
                    raise BadRequest(413, f"the request body has more than {self._limits.max_chunks} chunks")
                self._parts.append(bytes(event.data))
                events -= 1
                continue
            assert isinstance(event, h11.EndOfMessage), event
            rest = self._h11.trailing_data[0]
            if event.headers:
                raise BadRequest(400, "trailers after a chunked body are not accepted")
            # h11 takes a bare LF as the last line of a chunked body; a stricter proxy would still wait.
            if self._chunked and not self._tail.removesuffix(rest).endswith(b"\r\n"):
                raise BadRequest(400, "the chunked body does not end with CR LF")
            buffer[:0] = rest
            self.finished = True
            return True
        return False

    def taken(self) -> bytes:
        """The finished body."""
        assert self.finished
        return b"".join(self._parts)
