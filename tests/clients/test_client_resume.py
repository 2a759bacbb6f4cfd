"""The Python client over connections that break: its readers notice nothing; and credit by the token."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Iterator

import pytest
from live_server import LiveServer

from headrace.clients import client as client_module
from headrace.clients.errors import ConnectionLost, ServerRefused
from headrace.clients.events import TextDelta
from headrace.clients.stream import ResponseStream

connect = functools.partial(client_module.connect, open_timeout=120, reconnect_within=120)


@pytest.fixture
def live() -> Iterator[LiveServer]:
    server = LiveServer()
    yield server
    server.stop()


@pytest.fixture
def gated() -> Iterator[LiveServer]:
    """Steps land when the test says so: nothing can end before its connection is cut."""
    server = LiveServer(gated=True)
    yield server
    server.stop()


def cut(live: LiveServer) -> None:
    """Every connection breaks, without a close frame."""

    def abort(app: object) -> None:
        for connection in list(app.listener._port.connections):  # type: ignore[attr-defined]
            connection.abort()

    live.ask(abort)


def forget_all(live: LiveServer) -> None:
    """The server lets go of every answer whose reader is away; then it holds nothing."""
    # It may hear only now that a connection is gone.
    live.until(lambda app: not app.listener.connections)
    live.ask(lambda app: [app.held.let_go(held) for held in list(app.held._all.values())])
    live.baseline()


async def test_answers_go_on_over_a_new_connection_as_if_nothing_had_happened(gated: LiveServer) -> None:
    rng = random.Random(3)
    async with connect(gated.url) as client:
        streams = [await client.respond(f"q {n}", max_output_tokens=200, seed=n) for n in range(8)]
        readers = [asyncio.create_task(collect(stream)) for stream in streams]
        for _ in range(10):
            await asyncio.to_thread(gated.land, rng.randrange(10))
            await asyncio.to_thread(cut, gated)
            await asyncio.to_thread(gated.land, rng.randrange(5))
            before = [stream.resumes for stream in streams]
            await asyncio.to_thread(
                gated.until, lambda app: not app.held.stats()["detached_streams"] and app.listener.connections
            )
            assert all(now >= then for now, then in zip([s.resumes for s in streams], before, strict=True))
        gated.open_gate()
        told = await asyncio.gather(*readers)
        for number, (stream, (text, numbers)) in enumerate(zip(streams, told, strict=True)):
            assert numbers == list(range(len(numbers))), "no number is lost or told twice"
            assert text == stream.answer
            again = await client.respond(f"q {number}", max_output_tokens=200, seed=number)
            await again.response()
            assert again.answer == text, "as if it had not been cut"
        assert sum(stream.resumes for stream in streams) >= 8
        stats = gated.ask(lambda app: app.runtime.stats())
        assert stats["decode_tokens_computed"] == 2 * 8 * 200, "no token was computed twice"
    await asyncio.to_thread(gated.baseline)


async def collect(stream: ResponseStream) -> tuple[str, list[int]]:
    text, numbers = "", []
    async for event in stream:
        numbers.append(event.sequence_number)  # type: ignore[union-attr]
        if isinstance(event, TextDelta):
            text += event.delta
    return text, numbers


async def test_a_cancel_that_was_lost_with_the_connection_is_said_again(gated: LiveServer) -> None:
    async with connect(gated.url) as client:
        stream = await client.respond("q", max_output_tokens=1000)
        await asyncio.to_thread(gated.land, 5)
        await asyncio.to_thread(cut, gated)
        await stream.cancel()
        assert stream.status == "cancelled" and stream.resumes == 1
    await asyncio.to_thread(gated.baseline)


async def test_leaving_while_the_connection_is_away_ends_the_answer(gated: LiveServer) -> None:
    async with connect(gated.url) as client:
        stream = await client.respond("q", max_output_tokens=1000)
        assert client._link is not None
        link = client._link
        await asyncio.to_thread(cut, gated)
        while link.lost is None:
            await asyncio.sleep(0)
    with pytest.raises(ConnectionLost):
        await stream.response()
    assert stream.status == "lost"
    await asyncio.to_thread(forget_all, gated)


async def test_closing_right_after_the_connection_broke_ends_the_answers(gated: LiveServer) -> None:
    """Whatever their rescue has come to by then: not begun, dialling, shaking hands."""
    for turns in range(12):
        async with connect(gated.url, model="fake") as client:
            streams = [await client.respond("q", max_output_tokens=1000) for _ in range(2)]
            link = client._link
            assert link is not None
            link._socket.transport.abort()
            while link.lost is None:
                await asyncio.sleep(0)
            for _ in range(turns):
                await asyncio.sleep(0)
            await client.close()
            assert all(stream.ended for stream in streams), "whoever waits for them is told"
            assert not client._rescues and client._link is not None and client._link.lost is not None
    await asyncio.to_thread(forget_all, gated)


async def test_a_connection_that_opens_for_a_closed_client_is_closed(gated: LiveServer) -> None:
    async with connect(gated.url) as client:
        link = client._link
        assert link is not None
        link._socket.transport.abort()
        while link.lost is None:
            await asyncio.sleep(0)
        asking = asyncio.create_task(client.respond("q"))
        while not client._linking.locked():
            await asyncio.sleep(0)
        await client.close()
        with pytest.raises(RuntimeError, match="closed"):
            await asking
    await asyncio.to_thread(gated.until, lambda app: not app.listener.connections)


async def test_an_answer_that_the_server_gave_up_ends_with_the_reason(gated: LiveServer) -> None:
    async with connect(gated.url) as client:
        stream = await client.respond("q", max_output_tokens=1000)
        gated.ask(lambda app: app.held._all.clear())
        await asyncio.to_thread(cut, gated)
        with pytest.raises(ConnectionLost, match="no longer has this answer"):
            await stream.response()
        assert stream.status == "lost"


async def test_without_resuming_a_broken_connection_ends_its_answers(gated: LiveServer) -> None:
    async with connect(gated.url, resume=False) as client:
        stream = await client.respond("q", max_output_tokens=1000)
        await asyncio.to_thread(cut, gated)
        with pytest.raises(ConnectionLost):
            await stream.response()
    await asyncio.to_thread(gated.baseline)


async def test_credit(live: LiveServer) -> None:
    async with connect(live.url) as client:
        stream = await client.respond("q", max_output_tokens=800, seed=1, credit=10)
        text = ""
        async for event in stream:
            if isinstance(event, TextDelta):
                text += event.delta
                if len(text) == 10:
                    break
        while stream.paused is None:
            await asyncio.sleep(0.001)
        assert stream.paused == "credit" and not stream._unread
        other = await client.respond("q", max_output_tokens=800, seed=1)
        await other.response()
        stream.grant(790)
        text += "".join([piece async for piece in stream.text()])
        assert text == other.answer and stream.paused is None
    await asyncio.to_thread(live.baseline)


async def test_parameters_change_while_the_answer_runs(gated: LiveServer) -> None:
    async with connect(gated.url) as client:
        stream = await client.respond("q", max_output_tokens=500, seed=1)
        asking = asyncio.create_task(stream.update(max_output_tokens=30, temperature=0.5))
        # Both messages have been read: whatever is in flight lands only now.
        await asyncio.to_thread(gated.until, lambda app: app.metrics.messages_in >= 2)
        gated.open_gate()
        at = await asking
        final = await stream.response()
        assert 0 <= at < 30 and final.usage is not None and final.usage.output_tokens == 30
        with pytest.raises(ServerRefused, match="has ended"):
            await stream.update(temperature=0.1)
        other = await client.respond("q", max_output_tokens=5)
        with pytest.raises(ServerRefused) as caught:
            await other.update(temperature=9)
        assert caught.value.param == "temperature" or caught.value.code == "response_not_found"
    await asyncio.to_thread(gated.baseline)


async def test_a_fork_begins_as_its_parent_and_goes_its_own_way(live: LiveServer) -> None:
    async with connect(live.url) as client:
        parent = await client.respond("q", max_output_tokens=60, seed=1)
        await parent.response()
        for place, kept in (({"at_token": 20}, 20), ({"at_char": 33, "text": "Well, "}, 33)):
            child = await client.fork(parent, **place, seed=5)  # type: ignore[arg-type]
            await child.response()
            assert child.answer[:kept] == parent.answer[:kept]
            assert child.answer[kept:] != parent.answer[kept:] and len(child.answer) == 60
            assert child.answer[kept:].startswith(str(place.get("text", "")))
        with pytest.raises(ServerRefused) as caught:
            await client.fork(parent, at_token=61)
        assert caught.value.code == "fork_point_invalid"
        running = await client.respond("long", max_output_tokens=2000)
        await anext(running)
        rewound = await client.fork(running, at_token=0, drop_parent=True, max_output_tokens=10)
        await rewound.response()
        await running.response()
        assert running.status in ("cancelled", "incomplete")
    await asyncio.to_thread(live.baseline)
