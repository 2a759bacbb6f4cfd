"""The unmodified `litellm` in front of the running server, through three of its providers and its router."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from live_server import LiveServer
from short_answers import EOS, until_newline

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    running = LiveServer(choose=until_newline, eos=EOS, keys=("sk-test",), page_count=256)
    yield running
    running.baseline()
    running.stop()


@pytest.fixture
def litellm(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv(
        "LITELLM_LOCAL_MODEL_COST_MAP", "True"
    )  # its price list comes over the network otherwise
    import litellm

    return litellm


def address(server: LiveServer, provider: str) -> dict[str, Any]:
    base = f"{server.url}/v1" if provider == "openai" else server.url
    return {"model": f"{provider}/fake", "api_base": base, "api_key": "sk-test", "max_retries": 0}


PROVIDERS = pytest.mark.parametrize("provider", ["openai", "anthropic", "ollama_chat", "ollama"])


@PROVIDERS
def test_whole_and_streamed(litellm: Any, server: LiveServer, provider: str) -> None:
    asked = {**address(server, provider), "messages": HELLO, "max_tokens": 100, "temperature": 0}
    whole = litellm.completion(**asked)
    choice = whole.choices[0]
    assert choice.message.content and choice.finish_reason == "stop"
    assert whole.usage.completion_tokens and whole.usage.total_tokens > whole.usage.completion_tokens
    chunks = list(litellm.completion(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text.strip() and len(text) >= 12
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert [reason for reason in reasons if reason] == ["stop"]
    assert chunks[-1].usage.completion_tokens


@PROVIDERS
async def test_async_and_at_once(litellm: Any, server: LiveServer, provider: str) -> None:
    asked = {**address(server, provider), "messages": HELLO, "max_tokens": 100}

    async def streamed() -> str:
        reply = await litellm.acompletion(**asked, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in reply])

    texts = await asyncio.gather(*(streamed() for _ in range(4)))
    assert all(text.strip() for text in texts)


@pytest.mark.parametrize("provider", ["openai", "anthropic", "ollama_chat"])
def test_errors_become_litellm_s_own(litellm: Any, server: LiveServer, provider: str) -> None:
    asked = {**address(server, provider), "messages": HELLO, "max_tokens": 5}
    with pytest.raises((litellm.BadRequestError, litellm.APIConnectionError)) as bad:
        litellm.completion(**asked, temperature=9)
    assert "temperature" in str(bad.value)
    if provider != "ollama_chat":
        with pytest.raises(litellm.AuthenticationError):
            litellm.completion(**{**asked, "api_key": "sk-wrong"})
        with pytest.raises(litellm.NotFoundError):
            litellm.completion(**{**asked, "model": f"{provider}/gpt-9"})


def test_its_router_with_two_deployments_of_one_name(litellm: Any, server: LiveServer) -> None:
    deployments = [
        {"model_name": "chat", "litellm_params": address(server, provider)}
        for provider in ("openai", "anthropic")
    ]
    router = litellm.Router(model_list=deployments, num_retries=0)
    for _ in range(4):
        reply = router.completion(model="chat", messages=HELLO, max_tokens=50)
        assert reply.choices[0].message.content
