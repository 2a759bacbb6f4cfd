"""The unmodified `anthropic` client against the running server: sync and async, whole, events, helper, counts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from live_server import LiveServer
from short_answers import EOS, until_newline

HELLO: Any = [{"role": "user", "content": "hello"}]
SAME: Any = {"seed": 3}


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    running = LiveServer(choose=until_newline, eos=EOS, keys=("sk-test",), page_count=256)
    yield running
    running.baseline()
    running.stop()


@pytest.fixture
def client(server: LiveServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="sk-test", max_retries=0) as made:
        yield made


def text_of(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_whole_events_and_helper_give_the_same_message(client: anthropic.Anthropic) -> None:
    asked: Any = {"model": "fake", "max_tokens": 100, "messages": HELLO, "extra_body": SAME}
    whole = client.messages.create(**asked, system="be brief")
    assert whole.stop_reason == "end_turn" and text_of(whole)
    assert whole._request_id
    events = list(client.messages.create(**asked, system="be brief", stream=True))
    assert [event.type for event in events[:2]] == ["message_start", "content_block_start"]
    assert [event.type for event in events[-3:]] == ["content_block_stop", "message_delta", "message_stop"]
    told = "".join(
        event.delta.text
        for event in events
        if event.type == "content_block_delta" and event.delta.type == "text_delta"
    )
    assert told == text_of(whole)
    with client.messages.stream(**asked, system="be brief") as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == text_of(final) == text_of(whole)
    assert final.stop_reason == "end_turn" and final.usage.output_tokens == whole.usage.output_tokens
    assert final.usage.input_tokens + (final.usage.cache_read_input_tokens or 0) == whole.usage.input_tokens


async def test_the_async_client(server: LiveServer) -> None:
    async with anthropic.AsyncAnthropic(base_url=server.url, auth_token="sk-test", max_retries=0) as client:
        asked: Any = {"model": "fake", "max_tokens": 100, "messages": HELLO, "extra_body": SAME}
        whole = await client.messages.create(**asked)
        async with client.messages.stream(**asked) as stream:
            text = "".join([piece async for piece in stream.text_stream])
        assert text == text_of(whole) != ""
        counted = await client.messages.count_tokens(model="fake", messages=HELLO)
        assert counted.input_tokens == len("user: hello\nassistant: ")


def test_a_conversation_with_blocks_and_cache_marks(client: anthropic.Anthropic) -> None:
    first = client.messages.create(model="fake", max_tokens=100, messages=HELLO)
    turns: Any = [
        *HELLO,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": "and?"},
    ]
    system: Any = [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}]
    second = client.messages.create(model="fake", max_tokens=100, messages=turns, system=system)
    counted = client.messages.count_tokens(model="fake", messages=turns, system=system)
    usage = second.usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    expected = f"system: be brief\nuser: hello\nassistant: {text_of(first)}\nuser: and?\nassistant: "
    assert counted.input_tokens == len(expected)


def test_stop_sequences_and_limits(client: anthropic.Anthropic) -> None:
    whole = text_of(client.messages.create(model="fake", max_tokens=100, messages=HELLO, extra_body=SAME))
    stop = whole[5:7]
    cut = client.messages.create(
        model="fake", max_tokens=100, messages=HELLO, stop_sequences=["\x01", stop], extra_body=SAME
    )
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", stop)
    assert text_of(cut) == whole[: whole.index(stop)]
    short = client.messages.create(model="fake", max_tokens=3, messages=HELLO, extra_body=SAME)
    assert short.stop_reason == "max_tokens" and text_of(short) == whole[:3]


def test_errors_arrive_as_the_sdk_s_own(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(model="claude-9", max_tokens=5, messages=HELLO)
    assert missing.value.type == "not_found_error" and "claude-9" in missing.value.message
    with pytest.raises(anthropic.BadRequestError) as bad:
        client.messages.create(model="fake", max_tokens=5, messages=HELLO, extra_body={"temperature": 5})
    assert bad.value.type == "invalid_request_error" and "temperature" in bad.value.message
    long: Any = [{"role": "user", "content": "x" * 9000}]
    for stream in (False, True):
        with pytest.raises(anthropic.BadRequestError, match="tokens"):
            client.messages.create(model="fake", max_tokens=5, messages=long, stream=stream)
    with (
        anthropic.Anthropic(base_url=client.base_url, api_key="sk-wrong", max_retries=0) as stranger,
        pytest.raises(anthropic.AuthenticationError) as denied,
    ):
        stranger.messages.create(model="fake", max_tokens=5, messages=HELLO)
    assert denied.value.type == "authentication_error" and denied.value.request_id
    with pytest.raises(anthropic.APIStatusError) as large:
        client.messages.create(
            model="fake", max_tokens=5, messages=[{"role": "user", "content": "x" * (33 << 20)}]
        )
    assert large.value.status_code == 413 and large.value.type == "request_too_large"


def test_leaving_a_stream_early_cancels_it(client: anthropic.Anthropic, server: LiveServer) -> None:
    def begin() -> None:
        server.until(lambda app: app.loop.live)
        server.land(10)

    server.close_gate()
    try:
        beginning = threading.Thread(target=begin)
        beginning.start()
        stream = client.messages.create(
            model="fake", max_tokens=4000, messages=HELLO, stream=True, extra_body={"ignore_eos": True}
        )
        for index, _ in enumerate(stream):
            if index == 4:
                break
        beginning.join()
        stream.close()
        server.baseline()
    finally:
        server.open_gate()


def test_models(client: anthropic.Anthropic) -> None:
    (model,) = client.models.list().data
    assert model.id == "fake" and model.lifecycle == "active" and model.max_input_tokens == 4096
    assert client.models.retrieve("default").id == "fake"
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.models.retrieve("claude-9")
    assert caught.value.type == "not_found_error"
