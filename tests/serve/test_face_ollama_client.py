"""The unmodified `ollama` client against the running server: chat, generate, list, show, ps; sync and async."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ollama
import pytest
from live_server import LiveServer
from short_answers import EOS, until_newline

HELLO = [{"role": "user", "content": "hello"}]
OPTIONS = {"seed": 3, "num_predict": 100}
KEY = {"Authorization": "Bearer sk-test"}


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    running = LiveServer(choose=until_newline, eos=EOS, keys=("sk-test",), page_count=256)
    yield running
    running.baseline()
    running.stop()


@pytest.fixture
def client(server: LiveServer) -> Iterator[ollama.Client]:
    with ollama.Client(host=server.url, headers=KEY, trust_env=False) as made:
        yield made


def test_chat_whole_and_streamed(client: ollama.Client) -> None:
    whole = client.chat(model="fake", messages=HELLO, options=OPTIONS)
    assert whole.done and whole.done_reason == "stop" and whole.message.content
    assert whole.eval_count and whole.eval_duration and whole.prompt_eval_count
    parts = list(client.chat(model="fake", messages=HELLO, options=OPTIONS, stream=True))
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].eval_count == whole.eval_count


def test_a_conversation(client: ollama.Client) -> None:
    first = client.chat(model="fake:latest", messages=HELLO, options=OPTIONS)
    turns: list[Any] = [*HELLO, first.message, {"role": "user", "content": "and?"}]
    second = client.chat(model="fake", messages=turns, options=OPTIONS, keep_alive="5m", think=False)
    assert second.prompt_eval_count == len(
        f"user: hello\nassistant: {first.message.content}\nuser: and?\nassistant: "
    )


def test_generate_whole_streamed_and_raw(client: ollama.Client) -> None:
    whole = client.generate(model="fake", prompt="hello", system="be brief", options=OPTIONS)
    assert whole.response and whole.done_reason == "stop"
    assert whole.prompt_eval_count == len("system: be brief\nuser: hello\nassistant: ")
    parts = list(client.generate("fake", "hello", system="be brief", options=OPTIONS, stream=True))
    assert "".join(part.response or "" for part in parts) == whole.response
    raw = client.generate(model="fake", prompt="a: b", raw=True, options={"num_predict": 4, "stop": ["\x01"]})
    assert raw.prompt_eval_count == 4 and raw.done_reason == "length" and raw.eval_count == 4
    assert client.generate(model="fake").done_reason == "load"


async def test_the_async_client(server: LiveServer) -> None:
    async with ollama.AsyncClient(host=server.url, headers=KEY, trust_env=False) as client:
        whole = await client.chat(model="fake", messages=HELLO, options=OPTIONS)
        text = ""
        async for part in await client.chat(model="fake", messages=HELLO, options=OPTIONS, stream=True):
            text += part.message.content or ""
        assert text == whole.message.content != ""
        text = ""
        async for line in await client.generate(model="fake", prompt="x", options=OPTIONS, stream=True):
            text += line.response or ""
        assert text


def test_what_there_is(client: ollama.Client) -> None:
    (model,) = client.list().models
    assert model.model == "fake:latest" and model.details is not None
    shown = client.show("fake")
    assert shown.modelinfo is not None and "completion" in (shown.capabilities or [])
    assert client.pull("fake").status == "success"
    assert [part.status for part in client.pull("fake:latest", stream=True)] == ["success"]
    with pytest.raises(ollama.ResponseError, match="not found"):
        client.pull("llama9")
    for embed in (client.embed, client.embeddings):
        with pytest.raises(ollama.ResponseError, match="offers no embeddings"):
            embed("fake", "x")
    (running,) = client.ps().models
    assert running.model == model.model and running.context_length == 4096


def test_errors_arrive_with_status_and_sentence(client: ollama.Client, server: LiveServer) -> None:
    for stream in (False, True):
        with pytest.raises(ollama.ResponseError) as missing:
            list(client.chat(model="llama9", messages=HELLO, stream=stream))
        assert missing.value.status_code == 404 and missing.value.error == "model 'llama9' not found"
    with pytest.raises(ollama.ResponseError) as bad:
        client.chat(model="fake", messages=HELLO, options={"temperature": 9})
    assert bad.value.status_code == 400 and "options.temperature" in bad.value.error
    with (
        ollama.Client(host=server.url, headers={"Authorization": "Bearer no"}, trust_env=False) as stranger,
        pytest.raises(ollama.ResponseError) as denied,
    ):
        stranger.list()
    assert denied.value.status_code == 401 and "API key" in denied.value.error
