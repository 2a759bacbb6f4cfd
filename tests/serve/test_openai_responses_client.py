"""The unmodified `openai` client and what it can do with responses beyond asking: warm up, fork, steer, cancel,
follow, run in the background, come back after a restart."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from fake_prompter import letters
from live_server import LiveServer
from openai.types.websocket_reconnection import ReconnectingEvent
from strict_responses import check_event, check_sequence
from websockets.exceptions import ConnectionClosed

from headrace.server.websocket import SocketConnection

END = 10  # newline ends an answer
SENTENCE = b"It is a long story. "


def story(tokens: list[int], seed: int, width: int) -> int:
    """The same sentence for ever, if asked for a story; else letters, and a newline after 12 to 27 of them."""
    start = bytes(tokens).rindex(b"assistant: ") + 11
    said = len(tokens) - start
    if bytes(tokens[:start]).rpartition(b"user: ")[2].startswith(b"story"):
        return SENTENCE[said % len(SENTENCE)]
    return END if said >= 12 + seed % 16 else letters(tokens, seed, width)


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    running = LiveServer(choose=story, eos=frozenset({END}), keys=("sk-test",), page_count=256)
    yield running
    running.baseline()
    running.stop()


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with client_of(server) as made:
        yield made


def client_of(server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-test", max_retries=0)


def close_sockets(server: LiveServer, code: int) -> None:
    """Every socket of the server is closed with this code."""

    def close(app: Any) -> None:
        for connection in app.listener._port.connections:
            if isinstance(connection, SocketConnection):
                connection.close(code, "test")

    server.ask(close)


@contextlib.contextmanager
def held(server: LiveServer) -> Iterator[None]:
    """In this block no step lands unless the test says so: no answer just ends."""
    server.close_gate()
    try:
        yield
    finally:
        server.open_gate()


ENDS = ("response.completed", "response.incomplete", "response.failed", "error")


class Heard:
    """What a connection receives: the SDK's objects, and the bytes, which must pass its strict models."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.events: list[Any] = []
        self.raws: list[str] = []

    def one(self) -> Any:
        raw = self.connection.recv_bytes().decode()
        event = self.connection.parse_event(raw)
        if event.type != "error":
            check_event(raw)
        self.events.append(event)
        self.raws.append(raw)
        return event

    def until(self, *kinds: str) -> Any:
        """The next event of one of these types; what comes before it is kept."""
        while (event := self.one()).type not in kinds:
            pass
        return event

    def response(self) -> Any:
        """The next response that ends."""
        event = self.until(*ENDS)
        assert event.type != "error", event
        return event.response


def test_warm_up_then_only_the_delta(client: openai.OpenAI) -> None:
    instructions = "You keep a lighthouse and talk about nothing else. " * 3
    with client.responses.connect() as connection:
        heard = Heard(connection)
        connection.response.create(model="fake", instructions=instructions, input=[], generate=False)
        warm = heard.response()
        assert warm.status == "completed" and warm.output == [] and warm.usage.output_tokens == 0
        check_sequence(heard.raws)
        connection.response.create(
            model="fake", instructions=instructions, input="Hello", previous_response_id=warm.id
        )
        final = heard.response()
        assert final.output_text and final.previous_response_id == warm.id
        prompt = len(f"system: {instructions}\n")
        assert final.usage.input_tokens_details.cached_tokens >= prompt // 16 * 16 - 16
        connection.response.create(model="fake", input="x", prompt_cache_options={"prewarm": True})  # type: ignore[typeddict-unknown-key]
        assert heard.response().output == []


def test_forks_share_their_parent_and_run_side_by_side(client: openai.OpenAI, server: LiveServer) -> None:
    with client.responses.connect() as connection:
        heard = Heard(connection)
        connection.response.create(model="fake", input="Root", stream_id="main", store=False)
        parent = heard.response()
        with held(server):
            for lane in ("left", "right"):
                connection.response.create(
                    model="fake", input=lane, stream_id=lane, previous_response_id=parent.id, store=False
                )
            server.until(lambda app: app.loop.live == 2)
            server.open_gate()
            finals = [heard.response() for _ in range(2)]
        assert {final.previous_response_id for final in finals} == {parent.id}
        connection.response.create(
            model="fake", input="on", stream_id="main", previous_response_id=parent.id, store=False
        )
        assert heard.response().usage.input_tokens > parent.usage.input_tokens
        for lane in ("left", "right"):
            check_sequence([raw for raw in heard.raws if json.loads(raw).get("stream_id") == lane])


def test_steer_is_accepted_and_followed(client: openai.OpenAI, server: LiveServer) -> None:
    with client.responses.connect() as connection, held(server):
        heard = Heard(connection)
        connection.response.create(model="fake", input="story", stream_id="a", metadata={"k": "v"})
        target = heard.until("response.created").response.id
        server.until(lambda app: app.loop.live)
        server.land(4)
        heard.until("response.output_text.delta")
        connection.response.steer(previous_response_id=target, input="Be quick.")
        accepted = heard.until("response.steer.accepted")
        assert accepted.steer.previous_response_id == target and accepted.stream_id == "a"
        connection.response.steer(
            previous_response_id=target,
            input=[{"role": "user", "content": [{"type": "input_text", "text": "And kind."}]}],
        )
        assert heard.until("response.steer.accepted").steer.id != accepted.steer.id
        server.open_gate()
        cut = heard.response()
        assert cut.status == "incomplete" and cut.incomplete_details.reason == "steered"
        assert cut.output_text.strip().endswith("long story.") and cut.output[0].status == "completed"
        begun = heard.until("response.created").response
        assert begun.previous_response_id == target and begun.metadata == {"k": "v"}
        final = heard.response()
        assert final.id == begun.id and final.status == "completed" and final.output_text
        transcript = (
            f"user: story\nassistant: {cut.output_text}\nuser: Be quick.\nuser: And kind.\nassistant: "
        )
        assert final.usage.input_tokens == len(transcript)
        for wrong, code in ((target, "response_already_completed"), ("resp_unknown", "response_not_found")):
            connection.response.steer(previous_response_id=wrong, input="Too late")
            failed = heard.until("response.steer.failed")
            assert failed.error.code == code and failed.steer.input == "Too late"


def test_cancel_with_and_without_an_id(client: openai.OpenAI, server: LiveServer) -> None:
    cancel: Any = {"type": "response.cancel"}
    with client.responses.connect() as connection, held(server):
        heard = Heard(connection)
        for lane in ("a", None):
            connection.send({"type": "response.create", "model": "fake", "input": "story", "stream_id": lane})  # type: ignore[arg-type,misc]
        server.until(lambda app: app.loop.live == 2)
        server.land(6)
        connection.send(cancel)
        final = heard.response()
        assert final.status == "cancelled" and "stream_id" not in heard.events[-1].to_dict()
        connection.send(cancel)  # nothing runs there: nothing is said
        named = next(e.response.id for e in heard.events if e.to_dict().get("stream_id") == "a")
        connection.send({**cancel, "response_id": named})
        assert heard.response().id == named
        connection.response.create(model="fake", input="more", previous_response_id=final.id)
        server.open_gate()
        assert heard.response().status == "completed"


@pytest.mark.parametrize("code", [1001, 1011, 1012, 1013])
def test_close_codes_after_which_the_client_comes_back(
    client: openai.OpenAI, server: LiveServer, code: int
) -> None:
    seen: list[int] = []
    finals: list[Any] = []

    def ask_again(event: ReconnectingEvent) -> None:
        seen.append(event.close_code)
        connection.response.create(model="fake", input="two", previous_response_id=finals[0].id)

    with client.responses.connect(on_reconnecting=ask_again, initial_delay=0.0) as connection:
        connection.response.create(model="fake", input="one")
        for event in connection:
            if event.type == "response.completed":
                finals.append(event.response)
                if len(finals) == 2:
                    break
                close_sockets(server, code)
    assert seen == [code] and finals[1].previous_response_id == finals[0].id


@pytest.mark.parametrize("code", [1000, 1008, 4401])
def test_close_codes_after_which_it_does_not(client: openai.OpenAI, server: LiveServer, code: int) -> None:
    seen: list[ReconnectingEvent] = []
    with client.responses.connect(on_reconnecting=seen.append, initial_delay=0.0) as connection:
        connection.response.create(model="fake", input="one")
        Heard(connection).response()
        close_sockets(server, code)
        with pytest.raises((ConnectionClosed, openai.OpenAIError)):
            connection.recv()
    assert not seen


def test_a_restart_is_survived_with_what_was_stored(tmp_path: Path) -> None:
    """The server stops (1012) and another one starts on its port: the client reconnects and continues by id."""
    config: dict[str, Any] = {
        "choose": story, "eos": frozenset({END}), "keys": ("sk-test",), "store": str(tmp_path / "store.db"),
    }  # fmt: skip
    servers = [LiveServer(**config)]
    codes: list[int] = []
    finals: list[Any] = []
    try:
        port = int(servers[0].url.rpartition(":")[2])

        def restart(event: ReconnectingEvent) -> None:
            codes.append(event.close_code)
            servers.append(LiveServer(port=port, **config))
            connection.response.create(model="fake", input="two", previous_response_id=finals[0].id)

        with (
            client_of(servers[0]) as client,
            client.responses.connect(on_reconnecting=restart, initial_delay=0.0) as connection,
        ):
            connection.response.create(model="fake", input="one")
            for event in connection:
                if event.type == "response.completed":
                    finals.append(event.response)
                    if len(finals) == 2:
                        break
                    servers[0].stop()
        transcript = f"user: one\nassistant: {finals[0].output_text}\nuser: two\nassistant: "
        assert finals[1].usage.input_tokens == len(transcript)
        assert codes == [1012]
        servers[1].baseline()
    finally:
        for server in servers:
            server.stop()


# -- HTTP ------------------------------------------------------------------------------------------------------


def test_follow_a_response_from_any_number(client: openai.OpenAI) -> None:
    with client.responses.create(model="fake", input="hello", stream=True) as stream:
        whole = list(stream)
    response_id = whole[-1].response.id  # type: ignore[union-attr]
    for after in (0, 3, len(whole) - 2):
        again = list(client.responses.retrieve(response_id, stream=True, starting_after=after))
        assert again == whole[after + 1 :]
    with client.responses.stream(response_id=response_id) as replay:
        assert replay.get_final_response().output_text == whole[-1].response.output_text  # type: ignore[union-attr]


def test_background_poll_follow_and_cancel(client: openai.OpenAI, server: LiveServer) -> None:
    with held(server):
        queued = client.responses.create(model="fake", input="story", background=True)
        assert queued.status == "queued"
        server.until(lambda app: app.loop.live)
        server.land(10)
        stream = client.responses.retrieve(queued.id, stream=True, starting_after=1)
        first = next(iter(stream))
        assert first.sequence_number == 2 and client.responses.retrieve(queued.id).status == "in_progress"
        cancelled = client.responses.cancel(queued.id)
        assert cancelled.status == "cancelled" and cancelled.output_text.startswith("It is a")
        rest = [event.type for event in stream]
        assert rest[-1] == "response.incomplete"
    assert client.responses.retrieve(queued.id).output_text == cancelled.output_text
    done = client.responses.create(model="fake", input="hello", background=True)
    final = list(client.responses.retrieve(done.id, stream=True))[-1]
    assert final.type == "response.completed" and final.response.status == "completed"


async def test_the_async_client_streams_and_reads(server: LiveServer) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="sk-test", max_retries=0) as client:
        whole = await client.responses.create(model="fake", input="hello", extra_body={"seed": 4})
        text = ""
        async for event in await client.responses.create(
            model="fake", input="hello", extra_body={"seed": 4}, stream=True
        ):
            if event.type == "response.output_text.delta":
                text += event.delta
        assert text == whole.output_text != ""
        assert (await client.responses.retrieve(whole.id)).output_text == text
        numbers = [e.sequence_number async for e in await client.responses.retrieve(whole.id, stream=True)]
        assert numbers == list(range(len(numbers)))
        await client.responses.delete(whole.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(whole.id)


def test_input_items_page_by_page(client: openai.OpenAI) -> None:
    asked: Any = [{"role": "user", "content": f"question {n}"} for n in range(7)]
    response = client.responses.create(model="fake", input=asked)
    for order in ("asc", "desc"):
        items = list(client.responses.input_items.list(response.id, limit=3, order=order))
        texts = [item.content[0].text for item in items]  # type: ignore[union-attr]
        assert texts == [f"question {n}" for n in (range(7) if order == "asc" else range(6, -1, -1))]


def test_truncation(client: openai.OpenAI) -> None:
    history: Any = []
    for number in range(40):
        history += [
            {"role": "user", "content": f"{number} " + "x" * 100},
            {"role": "assistant", "content": "y" * 50},
        ]
    history.append({"role": "user", "content": "last"})
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="fake", input=history)
    assert caught.value.code == "context_length_exceeded"
    reply = client.responses.create(model="fake", input=history, truncation="auto")
    assert reply.status == "completed" and reply.truncation == "auto"
    assert reply.usage is not None and 2500 < reply.usage.input_tokens < 4096
