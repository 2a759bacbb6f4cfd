"""The unmodified `openai` client against the running server: WebSocket, HTTP, sync and async."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket as sockets
import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from live_server import LiveServer
from openai.types.responses import ResponsesServerEvent
from strict_responses import check_sequence
from words import END, until_newline


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    running = LiveServer(choose=until_newline, eos=frozenset({END}), keys=("sk-test",), page_count=256)
    yield running
    running.baseline()
    running.stop()


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-test", max_retries=0) as made:
        yield made


@contextlib.contextmanager
def held(server: LiveServer) -> Iterator[None]:
    """In this block no step lands unless the test says so: no answer just ends."""
    server.close_gate()
    try:
        yield
    finally:
        server.open_gate()


def collect(connection: Any, count: int = 1) -> tuple[list[ResponsesServerEvent], list[str]]:
    """Events, as the SDK's objects and as bytes on the wire, until `count` responses have ended."""
    events, raws = [], []
    while count:
        data = connection.recv_bytes()
        event = connection.parse_event(data)
        raws.append(data.decode() if isinstance(data, bytes) else data)
        events.append(event)
        count -= event.type in ("response.completed", "response.incomplete", "response.failed", "error")
    return events, raws


def create(**fields: Any) -> Any:
    """A create with fields that the SDK's method does not offer."""
    return {"type": "response.create", "model": "fake", "input": "x", **fields}


def test_a_response_over_the_socket(client: openai.OpenAI) -> None:
    with client.responses.connect() as connection:
        connection.response.create(model="fake", input="Say hello")
        events, raws = collect(connection)
    said = check_sequence(raws)
    assert events[-1].type == "response.completed"
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert events[-1].response.output_text == text != ""
    assert said[-1]["response"]["usage"]["input_tokens"] == len("user: Say hello\nassistant: ")


async def test_the_async_client_and_continuation(server: LiveServer) -> None:
    async with (
        openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="sk-test") as client,
        client.responses.connect() as connection,
    ):
        await connection.response.create(model="fake", input="one", store=False)
        first = None
        async for event in connection:
            if event.type == "response.completed":
                first = event.response
                break
        assert first is not None
        await connection.response.create(
            model="fake", input="two", previous_response_id=first.id, store=False
        )
        async for event in connection:
            if event.type == "response.completed":
                second = event.response
                break
        assert second.previous_response_id == first.id
        assert second.usage is not None and first.usage is not None
        assert second.usage.input_tokens == len(
            f"user: one\nassistant: {first.output_text}\nuser: two\nassistant: "
        )
        assert second.usage.input_tokens_details.cached_tokens >= first.usage.input_tokens // 16 * 16


def test_two_lanes_interleave(client: openai.OpenAI, server: LiveServer) -> None:
    with client.responses.connect() as connection, held(server):
        for lane in ("a", "b"):
            connection.send(create(stream_id=lane, max_output_tokens=200, ignore_eos=True, seed=5))
        server.until(lambda app: app.loop.live == 2)
        server.open_gate()
        _, raws = collect(connection, 2)
    texts = []
    for lane in ("a", "b"):
        mine = [raw for raw in raws if json.loads(raw)["stream_id"] == lane]
        texts.append(check_sequence(mine)[-1]["response"]["output"][0]["content"][0]["text"])
    assert texts[0] == texts[1], "the same request, the same answer"
    lanes = [json.loads(raw)["stream_id"] for raw in raws if "text.delta" in raw]
    assert lanes.index("b") < len(lanes) - 1 - lanes[::-1].index("a"), "both were running at once"


def test_not_found_over_the_socket(client: openai.OpenAI) -> None:
    with client.responses.connect() as connection:
        connection.response.create(model="fake", input="x", previous_response_id="resp_gone")
        (event,), _ = collect(connection)
        assert event.type == "error"
        error = event.to_dict()
        assert error["status"] == 400
        assert error["error"] == {
            "type": "invalid_request_error",
            "code": "previous_response_not_found",
            "message": "Previous response with id 'resp_gone' not found.",
            "param": "previous_response_id",
        }
        connection.response.create(model="fake", input="x")
        assert collect(connection)[0][-1].type == "response.completed"


def test_cancel_over_the_socket(client: openai.OpenAI, server: LiveServer) -> None:
    with client.responses.connect() as connection, held(server):
        connection.send(create(ignore_eos=True, max_output_tokens=4000))
        server.until(lambda app: app.loop.live)
        server.land(20)
        raws: list[str] = []
        while not raws or "response.incomplete" not in raws[-1]:
            raws.append(connection.recv_bytes().decode())
            if len(raws) == 10:
                response_id = json.loads(raws[0])["response"]["id"]
                connection.send({"type": "response.cancel", "response_id": response_id})  # type: ignore[arg-type]
        final = check_sequence(raws)[-1]["response"]
        assert final["status"] == "cancelled"
        assert 6 <= final["usage"]["output_tokens"] <= 20
        server.baseline()


def test_steer_over_the_socket(client: openai.OpenAI) -> None:
    with client.responses.connect() as connection:
        connection.response.steer(previous_response_id="resp_x", input="shorter")
        event = connection.recv()
        assert event.type == "response.steer.failed" and event.error.code == "response_not_found"


def test_an_abrupt_end_of_the_connection_cancels(server: LiveServer) -> None:
    with held(server), sockets.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as raw:
        raw.sendall(
            b"GET /v1/responses HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
            b"Authorization: Bearer sk-test\r\n\r\n"
        )
        assert raw.recv(4096).startswith(b"HTTP/1.1 101 ")
        body = json.dumps(create(ignore_eos=True, max_output_tokens=4000)).encode()
        raw.sendall(b"\x81\xfe" + len(body).to_bytes(2, "big") + b"\0\0\0\0" + body)
        server.until(lambda app: app.loop.live)
        server.land(10)
        got = b""
        while got.count(b"output_text.delta") < 3:
            got += raw.recv(65536)
        raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # leave with a reset
        raw.close()
        server.baseline()


def test_chat_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model="fake", messages=[{"role": "user", "content": "hello"}], temperature=0, seed=3
    )
    assert whole.choices[0].finish_reason == "stop" and whole.choices[0].message.content
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    chunks = list(
        client.chat.completions.create(
            model="fake",
            messages=[{"role": "user", "content": "hello"}],
            temperature=0,
            seed=3,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    told = [chunk for chunk in chunks if chunk.choices]
    assert told[0].choices[0].delta.role == "assistant" and told[0].choices[0].delta.content
    assert all(chunk.choices[0].delta.role is None for chunk in told[1:])
    assert "".join(c.choices[0].delta.content or "" for c in told) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in told] == [None] * (len(told) - 1) + ["stop"]
    assert all(chunk.usage is None for chunk in told)


async def test_the_chat_stream_helper_of_the_sdk(server: LiveServer) -> None:
    async with (
        openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="sk-test") as client,
        client.chat.completions.stream(
            model="fake", messages=[{"role": "user", "content": "hello"}]
        ) as stream,
    ):
        kinds = [event.type async for event in stream]
        final = await stream.get_final_completion()
    assert "content.delta" in kinds and final.choices[0].finish_reason == "stop"


def test_responses_whole_streamed_read_and_deleted(client: openai.OpenAI) -> None:
    seed = {"seed": 3}
    whole = client.responses.create(model="fake", input="hello", extra_body=seed)
    assert whole.status == "completed" and whole.output_text
    with client.responses.stream(model="fake", input="hello", extra_body=seed) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == whole.output_text
    assert events[-1].type == "response.completed"
    again = client.responses.retrieve(whole.id)
    assert again.output_text == whole.output_text and again.id == whole.id
    items = client.responses.input_items.list(whole.id).data
    assert [item.to_dict()["content"][0]["text"] for item in items] == ["hello"]  # type: ignore[index]
    more = client.responses.create(model="fake", input="and?", previous_response_id=whole.id)
    assert more.usage is not None and whole.usage is not None
    assert more.usage.input_tokens > whole.usage.input_tokens
    client.responses.delete(whole.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(whole.id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="fake", input="x", previous_response_id=whole.id)
    assert caught.value.code == "previous_response_not_found"
    still = client.responses.create(model="fake", input="and then?", previous_response_id=more.id)
    assert still.usage is not None and still.usage.input_tokens > more.usage.input_tokens


def test_errors_arrive_with_code_and_param(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "hello"}]
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-9", messages=messages)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="fake", messages=messages, temperature=5)
    assert (bad.value.code, bad.value.param) == ("invalid_value", "temperature")
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "x" * 9000}])
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "messages")
    with pytest.raises(openai.BadRequestError) as tools:
        client.chat.completions.create(
            model="fake", messages=messages, tools=[{"type": "function", "function": {"name": "f"}}]
        )
    assert (tools.value.code, tools.value.param) == ("unsupported_parameter", "tools")
    with pytest.raises(openai.BadRequestError) as stream:
        client.chat.completions.create(model="fake", messages=messages, stream=True, max_tokens=0)
    assert (stream.value.code, stream.value.param) == ("invalid_value", "max_tokens")
    with (
        openai.OpenAI(base_url=client.base_url, api_key="sk-wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "fake" and model.owned_by == "headrace"
    assert model.to_dict()["root"] == "fake" and model.to_dict()["max_model_len"] == 4096
    assert client.models.retrieve("fake").id == "fake"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-9")
    assert caught.value.code == "model_not_found"


def test_leaving_a_stream_early_cancels_it(client: openai.OpenAI, server: LiveServer) -> None:
    def begin() -> None:
        server.until(lambda app: app.loop.live)
        server.land(10)

    with held(server):
        beginning = threading.Thread(target=begin)
        beginning.start()  # the call returns with the first token
        stream = client.chat.completions.create(
            model="fake",
            messages=[{"role": "user", "content": "hello"}],
            stream=True,
            max_tokens=4000,
            extra_body={"ignore_eos": True},
        )
        for index, _ in enumerate(stream):
            if index == 3:
                break
        beginning.join()
        stream.close()
        server.baseline()


async def test_many_clients_at_once_each_get_their_own_answer(server: LiveServer) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="sk-test") as client:

        async def whole(seed: int) -> str:
            reply = await client.chat.completions.create(
                model="fake", messages=[{"role": "user", "content": "q"}], seed=seed
            )
            return reply.choices[0].message.content or ""

        async def streamed(seed: int) -> str:
            text = ""
            async for chunk in await client.chat.completions.create(
                model="fake", messages=[{"role": "user", "content": "q"}], seed=seed, stream=True
            ):
                text += chunk.choices[0].delta.content or ""
            return text

        async def response(seed: int) -> str:
            reply = await client.responses.create(model="fake", input="q", extra_body={"seed": seed})
            return reply.output_text

        async def socket(seed: int) -> str:
            async with client.responses.connect() as connection:
                await connection.send(create(input="q", seed=seed))
                async for event in connection:
                    if event.type == "response.completed":
                        return event.response.output_text
            raise AssertionError("no answer")

        for seed in range(3):
            texts = await asyncio.gather(*(f(seed) for f in (whole, streamed, response, socket) * 3))
            assert len(set(texts)) == 1 and texts[0], texts
