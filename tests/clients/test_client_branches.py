"""The Python client's branches: several answers side by side, given up and kept."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterator

import pytest
from live_server import LiveServer

from headrace.clients import client as client_module
from headrace.clients.errors import ConnectionLost, ServerRefused

connect = functools.partial(client_module.connect, open_timeout=120, reconnect_within=120)


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    live = LiveServer(gated=True)
    yield live
    live.stop()


@pytest.fixture
def gated(server: LiveServer) -> Iterator[LiveServer]:
    """Steps land when the test says so."""
    server.close_gate()
    yield server
    server.open_gate()
    server.until(lambda app: not app.listener.connections)
    server.ask(lambda app: [app.held.let_go(held) for held in list(app.held._all.values())])
    server.baseline()


async def test_branches_are_read_side_by_side(gated: LiveServer) -> None:
    gated.open_gate()
    async with connect(gated.url) as client:
        branches = await client.branches("q", 4, seed=3, max_output_tokens=30)
        assert len(branches) == 4
        await asyncio.gather(*(stream.response() for stream in branches))
        for number, stream in enumerate(branches):
            alone = await client.respond("q", seed=3 + number, max_output_tokens=30)
            await alone.response()
            assert alone.answer == stream.answer
        again = await client.respond("and?", previous=branches[2], max_output_tokens=3)
        assert again.lane == branches[2].lane.partition("#")[0]
        await again.response()


async def test_a_pruned_branch_ends_and_a_promoted_one_goes_on(gated: LiveServer) -> None:
    async with connect(gated.url, lanes=4) as client:
        branches = await client.branches("q", 4, max_output_tokens=400, store=False)
        await asyncio.to_thread(gated.land, 5)
        await branches[3].created()
        asking = asyncio.create_task(client.respond("who waits", max_output_tokens=3))
        await client_of(branches.prune(branches[1]), gated)
        assert branches[1].status == "cancelled" and branches[1].final is not None
        await asyncio.to_thread(gated.open_gate)
        await (await asking).response()
        await branches.promote(branches[2])
        final = await branches[2].response()
        assert final.usage is not None and final.usage.output_tokens == 400
        assert branches[0].ended and branches[3].ended
        with pytest.raises(ServerRefused) as caught:
            await branches._link.ask({"type": "x.promote", "branch": "nobody#1"})
        assert caught.value.param == "branch"
        more = await client.respond("and?", previous=branches[2], max_output_tokens=3, store=False)
        await more.response()
    assert len(client._seats._waiters or ()) == 0 and client._seats._value == 4


async def client_of(wanted: object, live: LiveServer) -> None:
    """Do what is `wanted` while steps land."""
    task = asyncio.ensure_future(wanted)  # type: ignore[arg-type]
    while not task.done():
        await asyncio.to_thread(live.land, 1)
    await task


async def test_branches_that_never_begin_say_so(gated: LiveServer) -> None:
    gated.open_gate()
    async with connect(gated.url) as client:
        branches = await client.branches("q", 3, at=50, max_output_tokens=20)
        await branches[0].response()
        for stream in branches[1:]:
            with pytest.raises(ServerRefused, match="before it began"):
                await stream.response()
            assert stream.status == "cancelled"
        with pytest.raises(ServerRefused) as caught:
            await client.branches("q", 3, temperature=9)
        assert caught.value.param == "temperature"
        with pytest.raises(ValueError, match="room for"):
            await client.branches("q", 17)
        assert client._seats._value == 16 and client._link is not None and len(client._link._free) == 16


async def test_branches_go_on_over_a_new_connection(gated: LiveServer) -> None:
    async with connect(gated.url) as client:
        branches = await client.branches("q", 3, seed=1, max_output_tokens=200)
        late = await client.branches("w", 2, seed=1, max_output_tokens=200, at=150)
        await asyncio.to_thread(gated.land, 6)
        await branches[2].created()
        assert client._link is not None
        client._link._socket.transport.abort()
        pruning = asyncio.create_task(branches.prune(branches[0]))
        with pytest.raises(ConnectionLost):
            await late[1].response()
        await asyncio.to_thread(gated.until, lambda app: app.held.resumes >= 4)
        gated.open_gate()
        await asyncio.gather(branches[1].response(), branches[2].response(), late[0].response(), pruning)
        assert branches[0].status == "cancelled" and branches[1].resumes == 1
        alone = await client.respond("q", seed=3, max_output_tokens=200)
        await alone.response()
        assert alone.answer == branches[2].answer
        await branches.promote(branches[2])
        assert client._seats._value == 16 and len(client._link._free) == 16
