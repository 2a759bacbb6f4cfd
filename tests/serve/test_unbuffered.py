"""Which answers tell a proxy not to collect them. tests/proxy shows that a real one listens."""

from __future__ import annotations

import pytest

from headrace.server.replies import head_bytes


@pytest.mark.parametrize(
    ("content_type", "unbuffered"),
    [
        ("text/event-stream; charset=utf-8", True),
        ("application/x-ndjson", True),
        ("application/json", False),
        ("text/html; charset=utf-8", False),
    ],
)
def test_streams_and_only_streams_ask_not_to_be_buffered(content_type: str, unbuffered: bool) -> None:
    head = head_bytes(200, content_type, {}, "req_1", b"", b"")
    assert (b"\r\nx-accel-buffering: no\r\n" in head) is unbuffered
