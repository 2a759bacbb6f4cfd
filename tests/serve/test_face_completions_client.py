"""The unmodified `openai` client on /v1/completions, and lm-eval's way of reading likelihoods from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from fake_engine import likely
from fake_prompter import letters
from live_server import LiveServer

END = 10


def letters_then_end(tokens: list[int], seed: int, width: int) -> int:
    """Letters, and an end whenever as many tokens stand there as a multiple of 40."""
    return END if len(tokens) % 40 == 0 else letters(tokens, seed, width)


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    running = LiveServer(choose=letters_then_end, eos=frozenset({END}), keys=("sk-test",))
    yield running
    running.baseline()
    running.stop()


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-test", max_retries=0) as made:
        yield made


def test_whole_and_streamed_are_the_same(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "fake", "prompt": ["a tale of", "two"], "max_tokens": 50, "seed": 3, "n": 2, "logprobs": 3,
    }  # fmt: skip
    whole = client.completions.create(**asked)
    assert {choice.finish_reason for choice in whole.choices} == {"stop"}
    texts = dict.fromkeys(range(4), "")
    values: dict[int, list[float]] = {index: [] for index in range(4)}
    usage = None
    for chunk in client.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            assert choice.logprobs is not None and choice.logprobs.token_logprobs is not None
            values[choice.index] += choice.logprobs.token_logprobs
        usage = chunk.usage or usage
    assert usage is not None and usage == whole.usage
    for choice in whole.choices:
        assert choice.text == texts[choice.index] != ""
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs == values[choice.index]
        assert "".join(choice.logprobs.tokens or ())[: len(choice.text)] == choice.text


async def test_the_async_client(server: LiveServer) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="sk-test") as client:
        asked: dict[str, Any] = {"model": "default", "prompt": [[97, 98, 99]], "max_tokens": 8, "seed": 1}
        whole = await client.completions.create(**asked)
        text = ""
        async for chunk in await client.completions.create(**asked, stream=True):
            text += chunk.choices[0].text
    assert text == whole.choices[0].text and len(text) == 8
    assert whole.usage is not None and whole.usage.prompt_tokens == 3


def test_errors_have_their_codes(client: openai.OpenAI) -> None:
    for asked, code, param in (
        ({"suffix": "the end"}, "unsupported_parameter", "suffix"),
        ({"best_of": 3}, "unsupported_parameter", "best_of"),
        ({"logprobs": 21}, "invalid_value", "logprobs"),
        ({"prompt": []}, "invalid_value", "prompt"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(**{"model": "fake", "prompt": "x", **asked})  # type: ignore[call-overload]
        assert (caught.value.code, caught.value.param) == (code, param)
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="x")
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="fake", input="x")
    assert caught.value.code == "unsupported_endpoint"


def test_likelihoods_as_lm_eval_reads_them(client: openai.OpenAI) -> None:
    """Its request and its arithmetic: the sum over `[ctxlen:-1]`, and greedy if each token is the likeliest."""
    pairs = [(b"the capital of france is", b" paris"), (b"two and two", b" four"), (b"x", b"y")]
    reply = client.completions.create(
        model="fake",
        prompt=[list(context + continuation) for context, continuation in pairs],
        temperature=0,
        max_tokens=1,
        logprobs=1,
        seed=1234,
        echo=True,
    )
    choices = sorted(reply.choices, key=lambda choice: choice.index)
    for (context, continuation), choice in zip(pairs, choices, strict=True):
        found = choice.logprobs
        assert found is not None and found.token_logprobs is not None and found.top_logprobs is not None
        values = found.token_logprobs[len(context) : -1]
        tops = found.top_logprobs[len(context) : -1]
        greedy = all(value == max(top.values()) for value, top in zip(values, tops, strict=True))
        tokens = list(context + continuation)
        ranked = [likely(tokens[:place], 256) for place in range(len(context), len(tokens))]
        assert sum(values) == sum(dict(r)[t] for r, t in zip(ranked, continuation, strict=True))
        assert greedy == all(r[0][1] == dict(r)[t] for r, t in zip(ranked, continuation, strict=True))


def test_logprobs_of_chat_and_responses(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 6, "seed": 1, "n": 2,
        "logprobs": True, "top_logprobs": 3,
    }  # fmt: skip
    whole = client.chat.completions.create(**asked)
    streamed: dict[int, list[Any]] = {0: [], 1: []}
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            assert choice.logprobs is not None and choice.logprobs.content is not None
            streamed[choice.index] += choice.logprobs.content
    for choice in whole.choices:
        assert choice.logprobs is not None and choice.logprobs.content == streamed[choice.index]
        told = b"".join(bytes(each.bytes or ()) for each in choice.logprobs.content)
        assert told.decode() == choice.message.content
    response = client.responses.create(
        model="fake",
        input="hi",
        max_output_tokens=6,
        include=["message.output_text.logprobs"],
        top_logprobs=3,
        extra_body={"seed": 1},
    )
    part = response.output[0].content[0]  # type: ignore[union-attr]
    assert response.top_logprobs == 3
    first = whole.choices[0].logprobs
    assert first is not None and first.content is not None
    assert [each.logprob for each in part.logprobs] == [each.logprob for each in first.content]  # type: ignore[union-attr]
