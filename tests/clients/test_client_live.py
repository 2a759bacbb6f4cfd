"""The Python client and the terminal chat against the real server: front, faces, loop and scheduler."""

from __future__ import annotations

import asyncio
import functools
import os
import random
import sys
from collections.abc import Iterator

import pytest
from live_server import LiveServer

from headrace.clients import client as client_module
from headrace.clients.client import Client
from headrace.clients.errors import ConnectionLost, ServerRefused, ServerUnreachable
from headrace.clients.events import Completed, Incomplete, TextDelta
from headrace.clients.stream import ResponseStream

# A busy machine may take its time to connect: only a test about that time has a short one.
connect = functools.partial(client_module.connect, open_timeout=120)


@pytest.fixture
def live() -> Iterator[LiveServer]:
    server = LiveServer()
    yield server
    server.stop()


@pytest.fixture
def gated() -> Iterator[LiveServer]:
    """Steps land when the test says so: nothing can end before it is cancelled."""
    server = LiveServer(gated=True)
    yield server
    server.stop()


async def idle(live: LiveServer) -> None:
    """Nothing runs any more and every page is back."""
    await asyncio.to_thread(live.baseline)


async def answer(client: Client, question: str, **settings: object) -> str:
    stream = await client.respond(question, **settings)  # type: ignore[arg-type]
    text = "".join([piece async for piece in stream.text()])
    assert text == stream.answer
    return text


async def test_the_events_of_one_answer(live: LiveServer) -> None:
    async with connect(live.url) as client:
        assert client.model == "fake"
        stream = await client.respond("hello", max_output_tokens=20, seed=1)
        events = [event async for event in stream]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert isinstance(events[-1], Completed | Incomplete)
    assert "".join(event.delta for event in events if isinstance(event, TextDelta)) == stream.answer
    assert stream.usage is not None
    assert stream.usage.output_tokens == 20
    assert stream.status == "incomplete"
    await idle(live)


async def test_streams_together_read_what_they_read_alone(live: LiveServer) -> None:
    questions = [f"question {number} " * (1 + number % 5) for number in range(24)]
    async with connect(live.url) as client:
        alone = [await answer(client, question, max_output_tokens=40, seed=3) for question in questions]
        together = await asyncio.gather(
            *(answer(client, question, max_output_tokens=40, seed=3) for question in questions)
        )
    assert list(together) == alone
    assert len(set(alone)) == len(alone), "the fake model reads its whole prompt"
    await idle(live)


async def test_a_continuation_is_the_same_as_saying_everything(live: LiveServer) -> None:
    async with connect(live.url) as client:
        first = await client.respond("one", max_output_tokens=10, seed=1)
        await first.response()
        second = await client.respond("two", previous=first, max_output_tokens=10, seed=1)
        await second.response()
        whole = await client.respond(
            [
                {"role": "user", "content": "one"},
                {"role": "assistant", "content": first.answer},
                {"role": "user", "content": "two"},
            ],
            max_output_tokens=10,
            seed=1,
        )
        await whole.response()
    assert second.answer == whole.answer != ""


async def test_random_cancels_leave_the_others_alone(gated: LiveServer) -> None:
    """Steps land only between the cancels, so that every answer is cut while it runs, whoever is faster."""
    rng = random.Random(5)
    async with connect(gated.url) as client:
        gated.open_gate()
        want = await answer(client, "keep", max_output_tokens=200, seed=9)
        for _ in range(15):
            gated.close_gate()
            kept = asyncio.create_task(answer(client, "keep", max_output_tokens=200, seed=9))
            cuts = [await client.respond("cut", max_output_tokens=3000) for _ in range(10)]

            async def cut(stream: ResponseStream) -> None:
                for _ in range(rng.randrange(3)):  # the first two events say that it has begun
                    await anext(stream)
                await stream.cancel()
                assert stream.status == "cancelled"

            rng.shuffle(cuts)
            while cuts:
                await asyncio.to_thread(gated.land, rng.randrange(6))
                leaving = [cuts.pop() for _ in range(min(len(cuts), rng.randint(1, 4)))]
                await asyncio.gather(*map(cut, leaving))
            assert not kept.done()
            gated.open_gate()
            assert await kept == want
    await idle(gated)


async def test_leaving_cancels_everything(gated: LiveServer) -> None:
    async with connect(gated.url) as client:
        streams = [await client.respond("long", max_output_tokens=3000) for _ in range(8)]
        await asyncio.to_thread(gated.land, 20)
    for stream in streams:
        with pytest.raises(ConnectionLost):
            await stream.response()
    await idle(gated)
    assert gated.ask(lambda app: app.runtime.stats())["requests_cancelled"] == 8


async def test_refusals_name_the_field(live: LiveServer) -> None:
    async with connect(live.url) as client:
        for settings, code, param in (
            ({"temperature": 9.0}, "invalid_value", "temperature"),
            ({"model": "another"}, "model_not_found", "model"),
            ({"previous": "resp_gone"}, "previous_response_not_found", "previous_response_id"),
            ({"extra": {"background": True}}, "unsupported_parameter", "background"),
        ):
            with pytest.raises(ServerRefused) as caught:
                await client.respond("?", **settings)  # type: ignore[arg-type]
            assert (caught.value.code, caught.value.param) == (code, param)
        assert await answer(client, "still here", max_output_tokens=5)


async def test_keys() -> None:
    live = LiveServer(keys=("sk-right",))
    try:
        async with connect(live.url, "sk-right") as client:
            assert await answer(client, "?", max_output_tokens=5)
        for key in ("sk-wrong", None):
            with pytest.raises(ServerRefused) as caught:
                async with connect(live.url, key):
                    pass
            assert caught.value.status == 401
            with pytest.raises(ServerRefused) as caught:
                async with connect(live.url, key, model="fake"):
                    pass
            assert caught.value.status == 401, "the upgrade is refused in the same words"
    finally:
        live.stop()


async def test_a_stopped_server_says_the_last_word_on_every_answer_and_is_gone() -> None:
    live = LiveServer(gated=True)
    async with connect(live.url, reconnect_within=0.1) as client:
        stream = await client.respond("?", max_output_tokens=50)
        stopping = asyncio.create_task(asyncio.to_thread(live.stop))
        final = await stream.response()
        assert final.status == stream.status == "cancelled"
        await stopping
        with pytest.raises((ServerUnreachable, ConnectionLost)):
            await client.respond("?")


async def test_the_terminal_chat_answers_a_pipe(live: LiveServer) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "headrace.clients.cli", "chat"),
        *("--url", live.url, "--max-tokens", "30", "--patience", "120"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name != "HEADRACE_API_KEY"},
    )
    out, err = await asyncio.wait_for(process.communicate(b"hello"), 120)
    assert (process.returncode, err) == (0, b"")
    text = out.decode()
    assert len(text.removesuffix("\n")) == 30, "the fake model writes one letter per token"
    await idle(live)
