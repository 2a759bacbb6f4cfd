"""What keeps a quiet connection alive passes nginx: pings of a WebSocket, comments and empty pieces in streams."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from live_server import PATIENT, LiveServer
from nginx_process import NAME, Nginx, flags
from raw_socket import handshake

from headrace.server.config import Limits
from headrace.server.flags import parse


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """nginx before a server of which no step ever lands, and which pings at once."""
    limits = msgspec.structs.replace(Limits(), **{**PATIENT, "ws_ping_interval": 0.01})
    server = LiveServer(gated=True, limits=limits, sse_ping=0.01, allow_host=parse(flags()).allow_host)
    nginx = Nginx(tmp_path_factory.mktemp("nginx"), server.url)
    yield nginx
    nginx.stop()
    server.until(lambda app: app.loop.live == 0)
    server.baseline()
    server.stop()


@pytest.mark.parametrize(
    ("path", "body", "ping"),
    [
        ("/v1/responses", {"input": "Hello"}, b": ping\n\n"),
        (
            "/v1/messages",
            {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 9},
            b"event: ping\n",
        ),
        ("/api/chat", {"messages": [{"role": "user", "content": "Hello"}]}, b'"content":""'),
    ],
)
def test_a_stream_without_tokens_is_kept_alive(
    quiet: Nginx, path: str, body: dict[str, Any], ping: bytes
) -> None:
    asked = {"model": "fake", "stream": True, **body}
    with quiet.http() as http, http.stream("POST", f"https://{NAME}{path}", json=asked) as reply:
        assert reply.status_code == 200
        said = b""
        for part in reply.iter_bytes():  # it would end only with the test
            said += part
            if said.count(ping) == 2:
                break


def test_a_quiet_websocket_is_pinged(quiet: Nginx) -> None:
    with quiet.connect() as bare:
        bare.sendall(handshake().replace(b"127.0.0.1", NAME.encode()))
        said = b""
        while b"\r\n\r\n" not in said or said.endswith(b"\r\n\r\n"):
            part = bare.recv(4096)
            assert part, said
            said += part
    head, _, frames = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ") and frames[0] == 0x89, said
