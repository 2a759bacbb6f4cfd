"""HTTP reply heads and error bodies as bytes. Knows statuses and headers; knows no route and no socket."""

from __future__ import annotations

import email.utils
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from headrace.server.exchange import HttpReply
from headrace.server.protocol.codec import encode

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self'; object-src 'none'; img-src 'self' data: blob:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)

STREAMED = ("text/event-stream", "application/x-ndjson")  # answers that go out piece by piece

_LINES = {code.value: f"HTTP/1.1 {code.value} {code.phrase}\r\n".encode("ascii") for code in HTTPStatus}
BODILESS = frozenset({204, 304})
_UNSAFE = re.compile(r"[^\x20-\x7e]")
_NAME = re.compile(r"\A[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")

_CODES = {
    400: "bad_request",
    401: "invalid_api_key",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "request_too_large",
    414: "uri_too_long",
    415: "unsupported_media_type",
    417: "expectation_failed",
    421: "misdirected_request",
    426: "upgrade_required",
    429: "rate_limit_exceeded",
    431: "headers_too_large",
    500: "server_error",
    503: "server_is_overloaded",
}


def error_reply(
    status: int,
    message: str,
    code: str = "",
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> HttpReply:
    """A reply with the nested error body that every route uses; `code` defaults to the word of the status."""
    if status >= 500:
        kind = "server_error"
    elif status == 429:
        kind = "rate_limit_error"
    else:
        kind = "invalid_request_error"
    fields: dict[str, Any] = {
        "message": message[:600],
        "type": kind,
        "param": param,
        "code": code or _CODES.get(status, "bad_request"),
    }
    return HttpReply(status, encode({"error": fields}), headers=headers or {})


class Dates:
    """The Date header, made once a second: formatting it costs more than the rest of a small reply."""

    __slots__ = ("_line", "_second")

    def __init__(self) -> None:
        self._second = -1
        self._line = b""

    def line(self, now: float) -> bytes:
        """The header line at loop time `now`."""
        second = int(now)
        if second != self._second:
            self._second = second
            self._line = f"date: {email.utils.formatdate(usegmt=True)}\r\n".encode("ascii")
        return self._line


def head_bytes(
    status: int,
    content_type: str,
    headers: Mapping[str, str],
    request_id: str,
    framing: bytes,
    date: bytes,
) -> bytes:
    """A reply head. `framing` holds the lines that say where the body ends and whether the connection stays."""
    lines = [
        _LINES[status],
        framing,
        # What has no body has no type.
        b"" if status in BODILESS else b"content-type: %s\r\n" % content_type.encode("latin-1"),
        b"x-request-id: ",
        request_id.encode("ascii"),
        b"\r\n",
        date,
        b"x-content-type-options: nosniff\r\n",
    ]
    if content_type.startswith("text/html"):
        lines.append(f"content-security-policy: {CONTENT_SECURITY_POLICY}\r\n".encode("ascii"))
        lines.append(b"cross-origin-opener-policy: same-origin\r\nreferrer-policy: no-referrer\r\n")
    elif content_type.startswith(STREAMED):
        # Proxies that collect a reply before passing it on would hold every token back.
        lines.append(b"x-accel-buffering: no\r\n")
    if "cache-control" not in headers:
        lines.append(b"cache-control: no-store\r\n")
    for name, value in headers.items():
        assert _NAME.match(name), name
        # A value may quote the client (names of ignored fields): nothing in it may start a new line.
        lines.append(f"{name}: {_UNSAFE.sub('?', value)}\r\n".encode("ascii"))
    lines.append(b"\r\n")
    return b"".join(lines)
