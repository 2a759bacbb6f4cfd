"""One HTTP request being answered: the parts of its answer become bytes, in order. Knows no bytes of requests."""

from __future__ import annotations

from collections.abc import Callable

from headrace.runtime.interface import PUBLIC_TENANT, Tenant
from headrace.server.exchange import STREAM_END, Answer, HttpReply, HttpRoute, Part, StreamHead
from headrace.server.metrics import NO_ROUTE
from headrace.server.outbox import Outlet
from headrace.server.port import Port
from headrace.server.reader import Head
from headrace.server.replies import BODILESS, head_bytes


class Exchange:
    """The Wire of one request's face. It stays valid, and silent, after its end.

    `head` is None where the request could not be read. `last` says that the connection ends with this reply; an
    answer of unknown length sets it for HTTP/1.0, which knows no other end.
    """

    __slots__ = (
        "_chunked",
        "_mark",
        "_outlet",
        "_port",
        "answer",
        "head",
        "last",
        "request_id",
        "route",
        "spoken",
        "template",
        "tenant",
    )

    def __init__(self, port: Port, outlet: Outlet, head: Head | None, request_id: str, last: bool) -> None:
        self._port = port
        self._outlet = outlet
        self._mark: Callable[[], None] | None = outlet.mark
        self._chunked = False
        self.head = head
        self.request_id = request_id
        self.last = last
        self.template = NO_ROUTE
        self.route: HttpRoute | None = None  # what the path leads to, once that is known
        self.tenant: Tenant = PUBLIC_TENANT
        self.answer: Answer | None = None
        self.spoken = False  # the head of the reply is out

    # -- Wire ---

    def dirty(self) -> None:
        if self._mark is not None:
            self._mark()

    def close(self, code: int, reason: str = "") -> None:
        raise AssertionError("close() is for WebSocket sessions; an HTTP answer ends with its last part")

    def malformed(self) -> None:
        raise AssertionError("malformed() is for WebSocket sessions; an HTTP face replies 400")

    # -- the connection's side ---

    def end(self) -> Answer | None:
        """Nothing of this request is heard any more. Returns the answer that was under way."""
        answer, self.answer, self._mark = self.answer, None, None
        return answer

    def take(self, parts: list[Part]) -> bool:
        """Put the bytes of `parts` into the outlet. True once the answer is complete; nothing may follow then."""
        blocks: list[bytes] = []
        over = False
        for part in parts:
            assert not over, "no part follows the last one"
            if isinstance(part, bytes):
                assert self.spoken, "a StreamHead comes before the bytes"
                blocks.append(part)
            elif isinstance(part, StreamHead):
                self._stream_head(part)
                if self._method == "HEAD":
                    assert self.answer is not None
                    self.answer.closed()
                    return True
            elif part is STREAM_END:
                over = True
            else:
                assert isinstance(part, HttpReply) and not self.spoken, part
                self.reply(part)
                over = True
        if self._chunked:
            self._chunk(blocks, over)
        else:
            self._outlet.put(*blocks)
        return over

    def reply(self, reply: HttpReply) -> None:
        """Put a whole reply into the outlet."""
        bodiless = reply.status in BODILESS
        framing = b"" if bodiless else b"content-length: %d\r\n" % len(reply.body)
        self._put_head(reply.status, reply, framing)
        if not bodiless and self._method != "HEAD":
            self._outlet.put(reply.body)

    @property
    def _method(self) -> str:
        return self.head.method if self.head is not None else ""

    def _stream_head(self, part: StreamHead) -> None:
        assert self.head is not None and not self.spoken, "one head per answer"
        if self.head.version == "1.0":
            self.last = True
            framing = b""
        else:
            self._chunked = True
            framing = b"transfer-encoding: chunked\r\n"
        self._put_head(part.status, part, framing)

    def _chunk(self, blocks: list[bytes], over: bool) -> None:
        """One chunk for everything of this flush: clients part events by their blank lines, not by chunks."""
        size = sum(map(len, blocks))
        if size:
            self._outlet.put(b"%x\r\n" % size, *blocks, b"\r\n")
        if over:
            self._outlet.put(b"0\r\n\r\n")

    def _put_head(self, status: int, part: HttpReply | StreamHead, framing: bytes) -> None:
        self.spoken = True
        if self.last:
            framing += b"connection: close\r\n"
        date = self._port.dates.line(self._port.loop.time())
        self._outlet.put(head_bytes(status, part.content_type, part.headers, self.request_id, framing, date))
        self._port.metrics.request(self._method, self.template, status)
