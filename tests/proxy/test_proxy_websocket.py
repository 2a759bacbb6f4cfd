"""Responses over a WebSocket through nginx, with the unmodified `openai` client."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
from live_server import LiveServer
from nginx_process import NAME, Nginx
from strict_responses import check_event
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect as raw_connect

ENDS = ("response.completed", "response.incomplete", "response.failed")
DELTA = "response.output_text.delta"


def until(connection: Any, *kinds: str) -> Any:
    """The next event of one of these types; each one read passes the client's strict models."""
    while True:
        raw = connection.recv_bytes().decode()
        event = connection.parse_event(raw)
        assert event.type != "error", raw
        check_event(raw)
        if event.type in kinds:
            return event


def answered(connection: Any) -> Any:
    return until(connection, *ENDS).response


def test_text_and_its_continuation(server: LiveServer, connect: Callable[[], Any]) -> None:
    server.open_gate()
    with connect() as connection:
        connection.response.create(model="fake", input="One")
        first = answered(connection)
        assert first.status == "completed" and len(first.output_text) == 40
        connection.response.create(model="fake", input="Two", previous_response_id=first.id)
        second = answered(connection)
        assert second.status == "completed" and second.previous_response_id == first.id
        transcript = f"user: One\nassistant: {first.output_text}\nuser: Two\nassistant: "
        assert second.usage.input_tokens == len(transcript)


def test_each_token_arrives_before_the_next_is_computed(
    server: LiveServer, connect: Callable[[], Any]
) -> None:
    with connect() as connection:
        connection.response.create(model="fake", input="Slowly")
        text = ""
        for count in range(1, 6):
            server.until(lambda app: server.engine.held)
            server.land(1)  # one token; the gate holds the next one until this one's delta was read
            text += until(connection, DELTA).delta
            assert len(text) == count
        server.open_gate()
        assert answered(connection).output_text.startswith(text)


def test_two_lanes_run_side_by_side(server: LiveServer, connect: Callable[[], Any]) -> None:
    with connect() as connection:
        for lane in ("left", "right"):
            connection.response.create(model="fake", input=lane, stream_id=lane)
        server.until(lambda app: app.loop.live == 2)
        begun: set[str] = set()
        while begun != {"left", "right"}:
            server.until(lambda app: server.engine.held)
            server.land(1)
            begun.add(until(connection, DELTA).to_dict()["stream_id"])
        assert server.ask(lambda app: app.loop.live) == 2
        server.open_gate()
        finals = [until(connection, *ENDS).to_dict() for _ in range(2)]
    assert {final["stream_id"] for final in finals} == begun
    assert {final["response"]["status"] for final in finals} == {"completed"}


def test_cancel(server: LiveServer, connect: Callable[[], Any]) -> None:
    with connect() as connection:
        connection.response.create(model="fake", input="Stop me")
        server.until(lambda app: server.engine.held)
        server.land(1)
        until(connection, DELTA)
        connection.send({"type": "response.cancel"})
        final = answered(connection)
        assert final.status == "cancelled" and len(final.output_text) < 40
        server.open_gate()
        connection.response.create(model="fake", input="Again")
        assert answered(connection).status == "completed"


@pytest.mark.parametrize("abrupt", [False, True], ids=["a close frame", "the socket dies"])
def test_who_hangs_up_at_nginx_is_cancelled_at_the_server(
    server: LiveServer, connect: Callable[[], Any], abrupt: bool
) -> None:
    with connect() as connection:
        connection.response.create(model="fake", input="Never mind", store=False)
        server.until(lambda app: server.engine.held)
        server.land(1)
        until(connection, DELTA)
        assert server.ask(lambda app: app.scheduler.pages_in_use) > 0
        if abrupt:
            connection._connection.socket.shutdown(socket.SHUT_RDWR)
        else:
            connection.close()
        server.until(lambda app: app.loop.live == 0 and not app.listener.connections)
        server.baseline()


def test_a_browser_sends_its_key_as_a_subprotocol_and_its_origin(server: LiveServer, nginx: Nginx) -> None:
    protocols: Any = ["openai-beta.responses.v1", "openai-insecure-api-key.sk-behind"]
    options = nginx.socket_options()
    address = f"wss://{NAME}/v1/responses"
    with raw_connect(address, origin=f"https://{NAME}", subprotocols=protocols, **options) as browser:  # type: ignore[arg-type]
        assert browser.subprotocol == "openai-beta.responses.v1"
        browser.send("{}")
        assert '"error"' in str(browser.recv())
    for origin, key, status in (
        ("https://other.example.com", "sk-behind", 403),
        (f"http://{NAME}", "sk-wrong", 401),
    ):
        protocols = ["openai-beta.responses.v1", f"openai-insecure-api-key.{key}"]
        with pytest.raises(InvalidStatus) as refused:
            raw_connect(address, origin=origin, subprotocols=protocols, **options)  # type: ignore[arg-type]
        assert refused.value.response.status_code == status
        assert refused.value.response.headers["x-request-id"]
