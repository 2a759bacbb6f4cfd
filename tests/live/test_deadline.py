"""The end of a drain: whatever still runs is told so, in the words of its own protocol, before its socket goes."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

import pytest
from live_server import LiveServer
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

LONG = {"model": "fake", "max_output_tokens": 400, "ignore_eos": True}


class Post:
    """A request that is under way; `rest` reads its reply to the end."""

    def __init__(self, server: LiveServer, path: str, body: dict[str, Any]) -> None:
        self.connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=120)
        self.connection.request("POST", path, json.dumps({**LONG, **body}))

    def rest(self) -> tuple[http.client.HTTPResponse, bytes]:
        reply = self.connection.getresponse()
        body = reply.read()  # raises IncompleteRead if the reply was cut
        self.connection.close()
        return reply, body


def running(server: LiveServer, count: int) -> None:
    """Wait for `count` generations, then land steps until each has said something."""

    def speaking(app: Any) -> int:
        return sum(stream.head > 2 for stream in app.runtime._generations)

    server.until(lambda app: app.loop.live == count)
    while server.ask(speaking) < count:
        server.land()


@pytest.fixture
def server() -> Any:
    live = LiveServer(gated=True)
    try:
        yield live
    finally:
        live.stop()


def data(body: bytes) -> list[bytes]:
    return [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]


def test_streamed_http_answers_say_that_they_were_ended(server: LiveServer) -> None:
    chat = {"messages": [{"role": "user", "content": "hello"}]}
    streamed = Post(server, "/v1/chat/completions", {**chat, "stream": True})
    whole = Post(server, "/v1/chat/completions", chat)
    response = Post(server, "/v1/responses", {"input": "hello", "stream": True})
    running(server, 3)
    server.loop.call_soon_threadsafe(server.app.interrupt)

    reply, body = streamed.rest()
    assert reply.status == 200
    *told, error, done = data(body)
    assert len(told) > 1 and b'"content"' in told[0]
    assert json.loads(error)["error"]["code"] == "server_is_overloaded"
    assert "stopping" in json.loads(error)["error"]["message"]
    assert done == b"[DONE]"

    reply, body = whole.rest()
    assert reply.status == 503 and reply.headers["retry-after"]
    assert json.loads(body)["error"]["code"] == "server_is_overloaded"

    reply, body = response.rest()
    *_, last, done = data(body)
    assert reply.status == 200 and done == b"[DONE]"
    assert json.loads(last)["type"] == "response.incomplete"
    assert json.loads(last)["response"]["status"] == "cancelled"


def test_sockets_tell_the_end_of_every_running_response_before_1012(server: LiveServer) -> None:
    with connect(server.url.replace("http", "ws") + "/v1/responses", open_timeout=120) as ws:
        for lane in ("a", "b", "c"):
            ws.send(json.dumps({"type": "response.create", "input": lane, "stream_id": lane, **LONG}))
        ws.send(json.dumps({"type": "response.create", "input": "waits", "stream_id": "a", **LONG}))
        ws.send(json.dumps({"type": "no.such.event"}))
        events: list[dict[str, Any]] = []
        # Messages of a socket are taken in order: when this one is refused, the one that waits has been read.
        while not events or events[-1]["type"] != "error":
            events.append(json.loads(ws.recv(timeout=120)))
        events.pop()
        running(server, 3)
        server.loop.call_soon_threadsafe(server.app.interrupt)
        with pytest.raises(ConnectionClosed) as closed:
            events.extend(iter(lambda: json.loads(ws.recv(timeout=120)), None))
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1012
    ends = ("response.incomplete", "response.completed", "response.failed", "error")
    ended = [(event["stream_id"], event["type"]) for event in events if event["type"] in ends]
    assert ended[0] == ("a", "error"), "what waited was refused when the drain began"
    assert sorted(ended[1:]) == [(lane, "response.incomplete") for lane in ("a", "b", "c")]
