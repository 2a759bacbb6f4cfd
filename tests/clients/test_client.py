"""The Python client against a scripted server: what it sends, what it hands out, how it fails."""

from __future__ import annotations

import asyncio
import functools
import socket as sockets
from collections.abc import AsyncIterable
from typing import Any

import pytest

from headrace.clients import client as client_module
from headrace.clients import stream as stream_module
from headrace.clients.client import Client
from headrace.clients.errors import (
    ConnectionLost,
    ResponseFailed,
    ServerRefused,
    ServerUnreachable,
    SlowReader,
)
from headrace.clients.events import Completed, Created, Incomplete, TextDelta, UnknownEvent

SCRIPTED = Any  # the server of conftest.py
# A busy machine may take its time to connect: only a test about that time has a short one.
connect = functools.partial(client_module.connect, open_timeout=120)


async def collect(source: AsyncIterable[Any], into: list[Any]) -> None:
    async for thing in source:
        into.append(thing)


async def gone(client: Client) -> None:
    """Wait until the client has noticed that its socket is lost."""
    assert client._link is not None
    while client._link.lost is None:
        await asyncio.sleep(0)


async def test_text_arrives_piece_by_piece(scripted: SCRIPTED) -> None:
    async with connect(scripted.url) as client:
        stream = await client.respond("why is the sky blue", instructions="be brief", temperature=0.5)
        assert stream.status == "in_progress"
        assert stream.response_id == "resp_0"
        assert [text async for text in stream.text()] == ["why ", "is ", "the ", "sky ", "blue "]
        assert stream.status == "completed"
        assert stream.answer == "why is the sky blue "
        assert stream.usage is not None
        assert stream.usage.output_tokens == 5
    sent = scripted.requests[0].fields
    assert sent == {
        "type": "response.create",
        "model": "scripted",
        "input": "why is the sky blue",
        "instructions": "be brief",
        "temperature": 0.5,
        "stream_id": "lane-0",
    }


async def test_events_are_typed_and_in_order(scripted: SCRIPTED) -> None:
    async with connect(scripted.url) as client:
        stream = await client.respond("a b")
        events = [event async for event in stream]
    assert [type(event).__name__ for event in events] == [
        *("Created", "InProgress", "ItemAdded", "PartAdded", "TextDelta", "TextDelta"),
        *("TextDone", "PartDone", "ItemDone", "Completed"),
    ]
    assert isinstance(events[0], Created)
    assert isinstance(events[-1], Completed)
    assert [event.sequence_number for event in events] == list(range(10))


async def test_many_streams_share_one_socket(scripted: SCRIPTED) -> None:
    turns = asyncio.Event()
    waiting: list[Any] = []

    async def interleaved(request: Any) -> None:
        await request.begin()
        waiting.append(request)
        if len(waiting) == 8:
            turns.set()
        await turns.wait()
        for number in range(5):
            await request.say(f"{request.fields['input']}{number} ")
            await asyncio.sleep(0)
        await request.finish()

    scripted.reply = interleaved
    async with connect(scripted.url, lanes=8) as client:

        async def ask(name: str) -> str:
            stream = await client.respond(name)
            return "".join([text async for text in stream.text()])

        answers = await asyncio.gather(*(ask(name) for name in "abcdefgh"))
    assert answers == [f"{n}0 {n}1 {n}2 {n}3 {n}4 " for n in "abcdefgh"]
    assert len(scripted.sockets) == 1
    assert len({request.fields["stream_id"] for request in scripted.requests}) == 8


async def test_more_requests_than_lanes_wait_for_a_free_one(scripted: SCRIPTED) -> None:
    running = most = 0

    async def counted(request: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await request.begin()
        await asyncio.sleep(0)
        await request.say("x")
        running -= 1
        await request.finish()

    scripted.reply = counted
    async with connect(scripted.url, lanes=3) as client:

        async def ask() -> str:
            return "".join([text async for text in (await client.respond("?")).text()])

        assert await asyncio.gather(*(ask() for _ in range(20))) == ["x"] * 20
    assert most == 3


async def test_a_continuation_names_its_predecessor_and_takes_its_lane(scripted: SCRIPTED) -> None:
    async with connect(scripted.url) as client:
        first = await client.respond("one")
        await first.response()
        other = await client.respond("two")
        await other.response()
        again = await client.respond("three", previous=first)
        await again.response()
        by_id = await client.respond("four", previous="resp_1")
        await by_id.response()
    lanes = [request.fields["stream_id"] for request in scripted.requests]
    assert lanes == ["lane-0", "lane-1", "lane-0", "lane-2"]
    assert scripted.requests[2].fields["previous_response_id"] == "resp_0"
    assert scripted.requests[3].fields["previous_response_id"] == "resp_1"


async def stopped(request: Any) -> None:
    await request.begin()
    await request.say("so far ")
    await request.cancelled.wait()
    await request.finish("cancelled")


async def test_cancel_ends_the_stream_and_keeps_what_came(scripted: SCRIPTED) -> None:
    scripted.reply = stopped
    async with connect(scripted.url) as client:
        stream = await client.respond("?")
        await stream.cancel()
        assert stream.status == "cancelled"
        assert stream.ended
        events = [event async for event in stream]
        assert isinstance(events[-1], Incomplete)
        assert "".join(e.delta for e in events if isinstance(e, TextDelta)) == "so far "
        await stream.cancel()  # once more is harmless
    assert scripted.cancels == ["resp_0"]


async def test_cancelling_an_ended_stream_sends_nothing(scripted: SCRIPTED) -> None:
    async with connect(scripted.url) as client:
        stream = await client.respond("?")
        await stream.response()
        await stream.cancel()
        await (await client.respond("!")).response()  # the server has read everything before this
    assert scripted.cancels == []


async def test_leaving_the_block_cancels(scripted: SCRIPTED) -> None:
    scripted.reply = stopped
    async with connect(scripted.url) as client:
        async with await client.respond("?") as stream:
            async for text in stream.text():
                assert text == "so far "
                break
        assert stream.status == "cancelled"
    assert scripted.cancels == ["resp_0"]


async def test_a_caller_that_gives_up_early_cancels_as_soon_as_there_is_an_id(scripted: SCRIPTED) -> None:
    arrived, let_go = asyncio.Event(), asyncio.Event()

    async def late(request: Any) -> None:
        arrived.set()
        await let_go.wait()
        await stopped(request)

    scripted.reply = late
    async with connect(scripted.url, lanes=1) as client:
        asking = asyncio.create_task(client.respond("?"))
        await arrived.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert scripted.cancels == []
        let_go.set()
        # The lane comes back only when the server has said its last word on the abandoned answer.
        following = asyncio.create_task(client.respond("!"))
        await (await following).cancel()
    assert scripted.cancels == ["resp_0", "resp_1"]


async def test_a_refusal_says_code_and_field_and_harms_nobody_else(scripted: SCRIPTED) -> None:
    async def picky(request: Any) -> None:
        if request.fields["input"] == "bad":
            await request.refuse("invalid_value", "temperature must be between 0 and 2", "temperature")
        else:
            await stopped(request)

    scripted.reply = picky
    async with connect(scripted.url) as client:
        good = await client.respond("good")
        with pytest.raises(ServerRefused, match="temperature must be") as caught:
            await client.respond("bad", temperature=9)
        assert (caught.value.code, caught.value.param, caught.value.status) == (
            *("invalid_value", "temperature"),
            400,
        )
        await good.cancel()
        assert good.status == "cancelled"


async def test_a_failure_after_the_beginning_raises_after_the_text(scripted: SCRIPTED) -> None:
    async def failing(request: Any) -> None:
        await request.begin()
        await request.say("half ")
        error = {"code": "server_error", "message": "the clock ran out", "x_code": "timeout"}
        await request.finish("failed", error=error)

    scripted.reply = failing
    async with connect(scripted.url) as client:
        stream = await client.respond("?")
        told: list[str] = []
        with pytest.raises(ResponseFailed, match="the clock ran out") as caught:
            await collect(stream.text(), told)
        assert told == ["half "]
        assert caught.value.code == "timeout"
        assert stream.status == "failed"


async def test_a_broken_connection_ends_its_streams_and_the_next_request_reconnects(
    scripted: SCRIPTED,
) -> None:
    scripted.reply = stopped
    async with connect(scripted.url) as client:
        streams = [await client.respond("?") for _ in range(3)]
        pieces = [aiter(stream.text()) for stream in streams]
        for piece in pieces:
            assert await anext(piece) == "so far "
        scripted.break_sockets()
        for stream, piece in zip(streams, pieces, strict=True):
            with pytest.raises(ConnectionLost) as caught:
                await anext(piece)
            assert caught.value.close_code == 1006
            assert stream.status == "lost"
            await stream.cancel()  # nothing left to cancel: returns
        again = await client.respond("?")
        await again.cancel()
        assert again.status == "cancelled"
    assert len(scripted.sockets) == 2


async def test_a_close_code_is_told(scripted: SCRIPTED) -> None:
    async def draining(request: Any) -> None:
        await request.begin()
        await request.socket.close(1012, "drain")

    scripted.reply = draining
    async with connect(scripted.url) as client:
        stream = await client.respond("?")
        with pytest.raises(ConnectionLost, match="restarting: drain") as caught:
            await stream.response()
        assert caught.value.close_code == 1012


async def test_reconnecting_waits_for_a_server_that_comes_back(scripted: SCRIPTED) -> None:
    async with connect(scripted.url, reconnect_within=300) as client:
        await (await client.respond("a")).response()
        await scripted.stop()
        await gone(client)
        asking = asyncio.create_task(client.respond("b"))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not asking.done()
        await scripted.start()
        assert (await (await asking).response()).status == "completed"


async def test_reconnecting_gives_up_in_time(scripted: SCRIPTED) -> None:
    async with connect(scripted.url, reconnect_within=0.3) as client:
        await scripted.stop()
        await gone(client)
        with pytest.raises(ServerUnreachable, match="nothing listens"):
            await client.respond("b")
        await scripted.start()
        await (await client.respond("c")).response()


async def test_nobody_listens(unused_tcp_port: int) -> None:
    with pytest.raises(ServerUnreachable, match="headrace serve"):
        async with connect(f"http://127.0.0.1:{unused_tcp_port}"):
            pass


async def test_somebody_else_listens() -> None:
    with sockets.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ServerUnreachable, match="did not answer within"):
            async with connect(f"http://127.0.0.1:{port}", model="m", open_timeout=0.2):
                pass


async def test_a_key_is_sent_and_a_wrong_one_is_a_refusal(scripted: SCRIPTED) -> None:
    async with connect(scripted.url, "sesame"):
        pass
    assert scripted.keys == ["Bearer sesame", "Bearer sesame"]
    body = b'{"error":{"message":"this key is not known","type":"invalid_request_error","param":null,"code":"k"}}'
    scripted.refuse_upgrade = (401, {}, body)
    with pytest.raises(ServerRefused, match="this key is not known") as caught:
        async with connect(scripted.url, "wrong", model="m"):
            pass
    assert caught.value.status == 401


async def test_a_stream_nobody_reads_holds_up_nobody(
    scripted: SCRIPTED, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "UNREAD_LENGTH", 2000)
    monkeypatch.setattr(stream_module, "JOIN_AFTER", 50)

    async def chatty(request: Any) -> None:
        await request.begin()
        if request.fields["input"] == "read me":
            for number in range(300):
                await request.say(f"{number} ")
            await request.finish()
            return
        while not request.cancelled.is_set():
            await request.say("x" * 20)
        await request.finish("cancelled")

    scripted.reply = chatty
    async with connect(scripted.url) as client:
        unread = await client.respond("nobody reads this")
        for _ in range(5):
            read = await client.respond("read me")
            assert "".join([text async for text in read.text()]).split() == [str(n) for n in range(300)]
        await unread.cancel()
        assert scripted.cancels == ["resp_0"]
        kept: list[Any] = []
        with pytest.raises(SlowReader):
            await collect(unread, kept)
        deltas = [event.delta for event in kept if isinstance(event, TextDelta)]
        assert set("".join(deltas)) == {"x"}
        assert len("".join(deltas)) == 2000
        assert len(kept) < 60


async def test_unread_deltas_are_joined_without_losing_text(
    scripted: SCRIPTED, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "JOIN_AFTER", 8)
    words = [f"{number} " for number in range(3000)]

    async def long(request: Any) -> None:
        await request.begin()
        for word in words:
            await request.say(word)
        await request.finish()

    scripted.reply = long
    async with connect(scripted.url) as client:
        stream = await client.respond("?")
        while not stream.ended:  # all of it arrives, unread
            await asyncio.sleep(0)
        events = [event async for event in stream]
    deltas = [event for event in events if isinstance(event, TextDelta)]
    assert "".join(event.delta for event in deltas) == "".join(words)
    assert len(events) < 30
    assert deltas[-1].sequence_number == 4 + len(words) - 1


async def test_an_unknown_event_is_handed_out_as_it_is(scripted: SCRIPTED) -> None:
    async def modern(request: Any) -> None:
        await request.begin()
        await request.event("x.unheard_of", position=3)
        await request.finish()

    scripted.reply = modern
    async with connect(scripted.url) as client:
        events = [event async for event in await client.respond("?")]
    (unknown,) = [event for event in events if isinstance(event, UnknownEvent)]
    assert unknown.type == "x.unheard_of"
    assert unknown.data["position"] == 3


@pytest.mark.parametrize("message", ["hello", "[]", '{"type":3}', '{"type":"response.created"}', b"\x00"])
async def test_what_is_no_event_ends_the_connection(scripted: SCRIPTED, message: str | bytes) -> None:
    async def rubbish(request: Any) -> None:
        await request.begin()
        await request.socket.send(message)

    scripted.reply = rubbish
    async with connect(scripted.url) as client:
        stream = await client.respond("?")
        with pytest.raises(ConnectionLost, match="the server sent"):
            await stream.response()


async def test_an_error_without_a_lane_answers_who_still_waits(scripted: SCRIPTED) -> None:
    async def lost_lane(request: Any) -> None:
        if request.fields["input"] == "early":
            await stopped(request)
        else:
            del request.fields["stream_id"]
            await request.refuse("invalid_json", "not a JSON object")

    scripted.reply = lost_lane
    async with connect(scripted.url) as client:
        early = await client.respond("early")
        with pytest.raises(ServerRefused, match="not a JSON object"):
            await client.respond("late")
        await early.cancel()
        assert early.status == "cancelled"


async def test_one_stream_has_one_reader(scripted: SCRIPTED) -> None:
    scripted.reply = stopped
    async with connect(scripted.url) as client:
        stream = await client.respond("?")
        reading = asyncio.create_task(stream.response())
        while not stream._reading:
            await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="one reader"):
            await anext(stream)
        await stream.cancel()
        await reading


async def test_closing_the_client_ends_what_runs(scripted: SCRIPTED) -> None:
    scripted.reply = stopped
    async with connect(scripted.url) as client:
        stream = await client.respond("?")
    with pytest.raises(ConnectionLost):
        await stream.response()
    with pytest.raises(RuntimeError, match="closed"):
        await client.respond("?")


@pytest.mark.parametrize(
    ("url", "http_url", "socket_url"),
    [
        ("http://h:1", "http://h:1", "ws://h:1/v1/responses"),
        ("https://h/v1/", "https://h", "wss://h/v1/responses"),
        ("h:8000", "http://h:8000", "ws://h:8000/v1/responses"),
        ("ws://[::1]:8000/v1/responses", "http://[::1]:8000", "ws://[::1]:8000/v1/responses"),
        ("https://h/engine/v1", "https://h/engine", "wss://h/engine/v1/responses"),
    ],
)
async def test_addresses(url: str, http_url: str, socket_url: str) -> None:
    client = Client(url, None, "m", 1, 1.0, 1.0)
    assert (client.http_url, client.socket_url) == (http_url, socket_url)


@pytest.mark.parametrize("url", ["ftp://h", "http://", "http://h:x", "http://h?a=1", "http://user@h"])
async def test_bad_addresses(url: str) -> None:
    with pytest.raises(ValueError, match=r"address|port|more than|Port"):
        async with connect(url):
            pass
