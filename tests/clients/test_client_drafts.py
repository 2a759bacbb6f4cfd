"""`Client.draft` against the real server: typed, corrected, sent, lost and thrown away."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Iterator
from typing import Any

import pytest
from live_server import LiveServer
from typing_scripts import script

from headrace.clients import client as client_module
from headrace.clients.errors import ServerRefused

connect = functools.partial(client_module.connect, open_timeout=120, reconnect_within=120)
WORDS = "the water of the river turns the wheel of the mill "


@pytest.fixture(scope="module")
def live() -> Iterator[LiveServer]:
    server = LiveServer()
    yield server
    server.stop()


async def plain(client: Any, text: str, **settings: Any) -> str:
    stream = await client.respond(text, seed=1, max_output_tokens=12, **settings)
    await stream.response()
    return str(stream.answer)


def drafts(live: LiveServer) -> int:
    return int(live.ask(lambda app: app.runtime.stats()["drafts"]))


async def test_a_typed_prompt_is_answered_as_a_plain_one(live: LiveServer) -> None:
    async with connect(live.url) as client:
        draft = await client.draft(instructions="be brief")
        draft.insert(WORDS * 4)
        draft.insert("cold ", at=4)
        draft.delete(0, 4)
        draft.replace(0, 4, "icy")
        await draft.settled()
        assert draft.text == "icy water of the river turns the wheel of the mill " + WORDS * 3
        assert draft.ack is not None and draft.ack.rev == 4 and draft.ack.chars == len(draft.text)
        stream = await draft.commit(seed=1, max_output_tokens=12)
        await stream.response()
        assert stream.answer == await plain(client, draft.text, instructions="be brief")
        assert draft.outcome is not None and draft.outcome.tokens_ahead > 150
        assert draft.outcome.response_id == stream.response_id
        second = await client.draft(previous=stream)
        second.insert("go on")
        answer = await second.commit(seed=1, max_output_tokens=12, extra={"metadata": {"k": "v"}})
        final = await answer.response()
        assert final.previous_response_id == stream.response_id and final.metadata == {"k": "v"}
        assert answer.answer == await plain(client, "go on", previous=stream)
        with pytest.raises(RuntimeError, match="was sent"):
            second.insert("more")
        with pytest.raises(RuntimeError, match="was sent"):
            await second.commit()
    await asyncio.to_thread(live.baseline)


async def test_scripts_of_edits_end_in_the_same_answers(live: LiveServer) -> None:
    async with connect(live.url) as client:
        for seed in range(4):
            rng = random.Random(seed)
            draft = await client.draft()
            for now in script(rng, 10):
                start = 0
                while start < min(len(draft.text), len(now)) and draft.text[start] == now[start]:
                    start += 1
                draft.replace(start, len(draft.text), now[start:])
                await asyncio.sleep(0)
            draft.insert("!")
            stream = await draft.commit(seed=1, max_output_tokens=12)
            await stream.response()
            assert stream.answer == await plain(client, draft.text)
    await asyncio.to_thread(live.baseline)


async def test_a_lost_connection_costs_a_draft_nothing_but_time(live: LiveServer) -> None:
    async with connect(live.url) as client:
        draft = await client.draft()
        draft.insert(WORDS)
        await draft.settled()
        assert client._link is not None
        client._link._socket.transport.abort()
        await asyncio.wait([client._link._reader])
        await asyncio.to_thread(live.until, lambda app: app.runtime.stats()["drafts"] == 0)
        draft.insert("and why?")
        stream = await draft.commit(seed=1, max_output_tokens=12)
        await stream.response()
        assert stream.answer == await plain(client, WORDS + "and why?") and draft.outcome is None
    await asyncio.to_thread(live.baseline)


async def test_a_discarded_draft_leaves_nothing_and_gives_its_place_back(live: LiveServer) -> None:
    async with connect(live.url, lanes=1) as client:
        draft = await client.draft()
        draft.insert(WORDS)
        await draft.settled()
        assert drafts(live) == 1
        full = await client.draft()
        full.insert("no lane is free for this one")
        await full.settled()
        assert full.ack is None, "it is not read ahead"
        draft.discard()
        draft.discard()
        stream = await full.commit(seed=1, max_output_tokens=12)
        await stream.response()
        assert stream.answer == await plain(client, full.text)
        assert drafts(live) == 0
    await asyncio.to_thread(live.baseline)


async def test_where_nothing_is_read_ahead_a_draft_is_a_plain_request(live: LiveServer) -> None:
    async with connect(live.url, resume=False) as client:
        draft = await client.draft()
        draft.insert(WORDS)
        await draft.settled()
        stream = await draft.commit(seed=1, max_output_tokens=12)
        await stream.response()
        assert stream.answer == await plain(client, WORDS) and draft.ack is None


async def test_what_the_server_refuses_is_raised_at_the_end(live: LiveServer) -> None:
    async with connect(live.url) as client:
        draft = await client.draft(model="another")
        draft.insert(WORDS)
        with pytest.raises(ServerRefused) as refused:
            await draft.commit()
        assert refused.value.code == "model_not_found"
        draft = await client.draft()
        draft.insert(WORDS)
        with pytest.raises(ServerRefused) as refused:
            await draft.commit(temperature=9.0)
        assert refused.value.param == "temperature"
        await asyncio.to_thread(live.until, lambda app: app.runtime.stats()["drafts"] == 0)
        draft = await client.draft()
        draft.insert(WORDS)
        draft.insert("x" * (1 << 20))  # more than a draft may be, but a request as any other
        with pytest.raises(ServerRefused) as refused:
            await draft.commit()
        assert refused.value.code == "context_length_exceeded"
        with pytest.raises(IndexError):
            (await client.draft()).insert("x", at=1)
    await asyncio.to_thread(live.baseline)
