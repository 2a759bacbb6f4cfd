"""The unmodified `openai` client's Realtime API against the running server, and the handshakes of browsers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from live_server import LiveServer
from openai.types.realtime import RealtimeServerEvent
from strict_realtime import Reader
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect as open_socket
from websockets.typing import Subprotocol
from words import END, until_newline

KEY = "sk-test"


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    running = LiveServer(choose=until_newline, eos=frozenset({END}), keys=(KEY,), page_count=256)
    yield running
    running.baseline()
    running.stop()


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


@contextlib.contextmanager
def held(server: LiveServer) -> Iterator[None]:
    """In this block no step lands unless the test says so: no answer just ends."""
    server.close_gate()
    try:
        yield
    finally:
        server.open_gate()


class Told:
    """Every event of a connection as the SDK's object, each frame checked strictly."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.reader = Reader()
        self.events: list[RealtimeServerEvent] = []

    def next(self) -> Any:
        data = self.connection.recv_bytes()
        self.reader.take(data.decode() if isinstance(data, bytes) else data)
        event = self.connection.parse_event(data)
        self.events.append(event)
        return event

    def until(self, *kinds: str) -> Any:
        """The next event of one of these types."""
        while (event := self.next()).type not in kinds:
            pass
        return event


def user(text: str) -> Any:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def test_a_conversation_of_two_turns(client: openai.OpenAI) -> None:
    with client.realtime.connect(model="fake") as connection:
        told = Told(connection)
        created = told.next()
        assert created.type == "session.created" and created.session.model == "fake"
        connection.session.update(session={"type": "realtime", "instructions": "Be brief."})
        updated = told.next()
        assert updated.type == "session.updated" and updated.session.instructions == "Be brief."
        texts = []
        for question in ("one", "two"):
            connection.conversation.item.create(item=user(question))
            connection.response.create()
            done = told.until("response.done")
            assert done.response.status == "completed"
            texts.append(done.response.output[0].content[0].text)
            assert told.until("rate_limits.updated").rate_limits == []
        deltas = [event.delta for event in told.events if event.type == "response.output_text.delta"]
        assert "".join(deltas) == "".join(texts) and all(texts)
        prompt = f"system: Be brief.\nuser: one\nassistant: {texts[0]}\nuser: two\nassistant: "
        usage = done.response.usage
        assert usage.input_tokens == len(prompt) and usage.total_tokens == len(prompt) + usage.output_tokens
        assert usage.input_token_details.cached_tokens > 0, "the first turn was computed once"
        assert [item["role"] for item in told.reader.items] == ["user", "assistant"] * 2


async def test_the_async_client_with_its_handlers(server: LiveServer) -> None:
    async with (
        openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client,
        client.realtime.connect(model="fake") as connection,
    ):
        kinds: list[str] = []
        texts: list[str] = []
        connection.on("event", lambda event: kinds.append(event.type))
        connection.on("response.output_text.delta", lambda event: texts.append(event.delta))
        connection.on("error", lambda event: kinds.append(event.error.code))
        ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        connection.once("response.done", ended.set_result)
        dispatching = asyncio.create_task(connection.dispatch_events())
        await connection.conversation.item.create(item=user("hello"))
        await connection.response.create(response={"metadata": {"turn": "1"}})
        done = await ended
        assert done.response.status == "completed" and done.response.metadata == {"turn": "1"}
        assert "".join(texts) == done.response.output[0].content[0].text != ""
        await connection.close()
        await dispatching
        assert kinds[0] == "session.created" and "response.done" in kinds


def test_cancel_and_the_order_that_pipecat_uses(client: openai.OpenAI, server: LiveServer) -> None:
    with client.realtime.connect(model="fake") as connection, held(server):
        told = Told(connection)
        connection.conversation.item.create(item=user("hello"))
        connection.response.create()
        server.until(lambda app: app.loop.live)
        server.land(8)
        for _ in range(2):
            told.until("response.output_text.delta")
        connection.input_audio_buffer.clear()
        connection.response.cancel()
        done = told.until("response.done")
        assert done.response.status == "cancelled"
        assert done.response.status_details.reason == "client_cancelled"
        assert 2 <= done.response.usage.output_tokens <= 8
        assert "input_audio_buffer.cleared" in told.reader.types and not told.reader.errors
        connection.input_audio_buffer.clear()
        connection.response.cancel(event_id="late")
        error = told.until("error")
        assert error.error.code == "response_cancel_not_active" and error.error.event_id == "late"
        server.open_gate()
        connection.response.create()
        assert told.until("response.done").response.status == "completed"


def test_answers_out_of_band_beside_the_conversation(client: openai.OpenAI, server: LiveServer) -> None:
    with client.realtime.connect(model="fake") as connection, held(server):
        told = Told(connection)
        connection.conversation.item.create(item=user("hello"))
        connection.response.create()
        connection.response.create(
            response={
                "conversation": "none",
                "metadata": {"topic": "classify"},
                "input": [user("What is it about?")],
                "output_modalities": ["text"],
            }
        )
        connection.response.create(event_id="too many")
        error = told.until("error")
        assert error.error.code == "conversation_already_has_active_response"
        assert error.error.event_id == "too many"
        server.open_gate()
        finals = [told.until("response.done").response for _ in range(2)]
        assert {final.conversation_id is None for final in finals} == {True, False}
        aside = next(final for final in finals if final.conversation_id is None)
        assert aside.metadata == {"topic": "classify"}
        assert aside.usage.input_tokens == len("user: What is it about?\nassistant: ")
        assert len(told.reader.items) == 2


def test_items_are_put_read_and_deleted(client: openai.OpenAI) -> None:
    with client.realtime.connect(model="fake") as connection:
        told = Told(connection)
        connection.conversation.item.create(item={**user("second"), "id": "b"})
        connection.conversation.item.create(item={**user("first"), "id": "a"}, previous_item_id="root")
        connection.conversation.item.retrieve(item_id="a")
        assert told.until("conversation.item.retrieved").item.content[0].text == "first"
        assert [item["id"] for item in told.reader.items] == ["a", "b"]
        connection.conversation.item.delete(item_id="a")
        assert told.until("conversation.item.deleted").item_id == "a"
        connection.conversation.item.retrieve(item_id="a", event_id="gone")
        error = told.until("error")
        assert (error.error.code, error.error.event_id) == ("item_retrieve_invalid_item_id", "gone")
        connection.conversation.item.truncate(item_id="b", content_index=0, audio_end_ms=5)
        assert told.until("error").error.code == "not_supported"


def test_audio_is_refused_in_words(client: openai.OpenAI) -> None:
    with client.realtime.connect(model="fake") as connection:
        told = Told(connection)
        connection.session.update(session={"type": "realtime", "output_modalities": ["audio"]}, event_id="a")
        error = told.until("error").error
        assert (error.code, error.event_id) == ("not_supported", "a")
        assert error.param == "session.output_modalities" and "text" in error.message
        connection.input_audio_buffer.append(audio="AAAA")
        assert told.until("error").error.code == "not_supported"
        connection.input_audio_buffer.commit()
        assert told.until("error").error.code == "input_audio_buffer_commit_empty"
        connection.conversation.item.create(item=user("still here"))
        connection.response.create()
        assert told.until("response.done").response.status == "completed"


def test_the_client_reconnects_to_a_server_that_drains(client: openai.OpenAI) -> None:
    """A planned stop is 1012, which the SDK takes as a reason to come back: here to another server."""
    first = LiveServer(choose=until_newline, eos=frozenset({END}), keys=(KEY,))
    second = LiveServer(choose=until_newline, eos=frozenset({END}), keys=(KEY,))
    codes: list[int] = []
    try:
        with openai.OpenAI(base_url=f"{first.url}/v1", api_key=KEY) as moving:

            def again(event: Any) -> None:
                codes.append(event.close_code)
                moving.base_url = f"{second.url}/v1"

            with moving.realtime.connect(
                model="fake", on_reconnecting=again, initial_delay=0.0
            ) as connection:
                events = iter(connection)
                session = next(events)
                first.loop.call_soon_threadsafe(first.app.interrupt)
                fresh = next(events)
                assert session.type == fresh.type == "session.created"
                assert session.session.to_dict()["id"] != fresh.session.to_dict()["id"]
                connection.conversation.item.create(item=user("hello"))
                connection.response.create()
                done = next(event for event in events if event.type == "response.done")
                assert done.response.status == "completed"
    finally:
        first.stop()
        second.stop()
    assert codes == [1012]


def test_an_abrupt_end_of_the_connection_cancels(client: openai.OpenAI, server: LiveServer) -> None:
    with held(server):
        connection = client.realtime.connect(model="fake").enter()
        connection.conversation.item.create(item=user("hello"))
        connection.response.create()
        server.until(lambda app: app.loop.live)
        server.land(4)
        connection._connection.socket.shutdown(2)  # type: ignore[attr-defined]
        server.baseline()


def test_refusals_come_before_the_upgrade(client: openai.OpenAI, server: LiveServer) -> None:
    with pytest.raises(InvalidStatus) as caught:
        client.realtime.connect(model="gpt-realtime").enter()
    assert caught.value.response.status_code == 404
    body = json.loads(caught.value.response.body or b"")
    assert body["error"]["code"] == "model_not_found"
    with (
        openai.OpenAI(base_url=client.base_url, api_key="sk-wrong") as stranger,
        pytest.raises(InvalidStatus) as caught,
    ):
        stranger.realtime.connect(model="fake").enter()
    assert caught.value.response.status_code == 401
    with pytest.raises(InvalidStatus) as caught:
        client.realtime.connect(call_id="rtc_1").enter()
    assert caught.value.response.status_code == 400


# -- browsers ------------------------------------------------------------------------------------------------------


def browser(server: LiveServer, *protocols: str, **headers: str) -> Any:
    """A handshake as a browser makes it: no Authorization header, a list of subprotocols, an Origin."""
    address = server.url.replace("http://", "ws://") + "/v1/realtime?model=fake"
    offered = [Subprotocol(name) for name in protocols]
    return open_socket(
        address, subprotocols=offered, compression=None, additional_headers=headers, proxy=None
    )


def test_browsers_bring_their_key_as_a_subprotocol(server: LiveServer) -> None:
    key = f"openai-insecure-api-key.{KEY}"
    for offered in (
        ("realtime", key, "openai-beta.realtime-v1"),
        ("realtime", key),
        (key, "realtime", "openai-organization.org", "openai-project.proj"),
    ):
        with browser(server, *offered, Origin=server.url) as socket:
            assert socket.subprotocol == "realtime", "one is selected, and never the key"
            assert KEY not in str(socket.response.headers)
            assert json.loads(socket.recv())["type"] == "session.created"


@pytest.mark.parametrize(
    ("offered", "origin", "status"),
    [
        (("realtime",), None, 401),
        (("realtime", "openai-insecure-api-key.sk-wrong"), None, 401),
        ((f"openai-insecure-api-key.{KEY}",), None, 400),
        ((f"openai-insecure-api-key.{KEY}", "openai-beta.realtime-v1"), None, 400),
        (("realtime", f"openai-insecure-api-key.{KEY}"), "https://elsewhere.example", 403),
    ],
)
def test_browsers_that_are_refused(
    server: LiveServer, offered: tuple[str, ...], origin: str | None, status: int
) -> None:
    headers = {} if origin is None else {"Origin": origin}
    with pytest.raises(InvalidStatus) as caught:
        browser(server, *offered, **headers)
    assert caught.value.response.status_code == status
    assert "message" in json.loads(caught.value.response.body or b"")["error"]


def test_too_many_unreadable_messages_end_the_connection(server: LiveServer) -> None:
    with browser(server, "realtime", f"openai-insecure-api-key.{KEY}") as socket:
        assert json.loads(socket.recv())["type"] == "session.created"
        answered = 0

        def ask() -> None:
            nonlocal answered
            for _ in range(100):
                socket.send("zork")
                answered += json.loads(socket.recv())["error"]["code"] == "invalid_json"

        with pytest.raises(ConnectionClosed) as caught:
            ask()
        assert caught.value.rcvd is not None and caught.value.rcvd.code == 1008
        assert answered == 33, "the last one is answered too"


def test_many_sessions_at_once_each_get_their_own_answer(server: LiveServer) -> None:
    texts: dict[int, list[str]] = {}

    def talk(number: int) -> None:
        with (
            openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client,
            client.realtime.connect(model="fake") as connection,
        ):
            told = Told(connection)
            connection.conversation.item.create(item=user(f"question {number % 2}"))
            event: Any = {"type": "response.create", "response": {"seed": number % 2}}
            connection.send(event)
            done = told.until("response.done")
            texts[number] = [done.response.output[0].content[0].text]

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(texts) == 8
    assert all(texts[number] == texts[number % 2] for number in texts) and texts[0] != texts[1]


def test_the_example_of_the_page_runs() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "realtime.md").read_text()
    example = next(
        text
        for text in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
        if "OpenAI(" in text
    )
    running = LiveServer(choose=until_newline, eos=frozenset({END}))
    try:
        assert "http://127.0.0.1:8000" in example
        ran = subprocess.run(
            [sys.executable, "-P", "-c", example.replace("http://127.0.0.1:8000", running.url)],
            capture_output=True,
            text=True,
            timeout=300,
        )
    finally:
        running.stop()
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.splitlines()) == 2 and all(ran.stdout.splitlines())
