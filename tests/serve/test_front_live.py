"""The one port over real sockets on uvloop: hand-over, stalls, resets, drain, file limits, the real clients."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import struct
import subprocess
import sys
import textwrap
import weakref
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest
import websockets
from front_rig import (
    Faces,
    ScriptedAnswer,
    close_code,
    closing,
    frame,
    frames,
    get,
    handshake,
    on_uvloop,
    only,
    post,
    replies,
    text,
    texts,
)
from live_server import PATIENT

from headrace.server.auth import BadSetting
from headrace.server.config import Limits, ServerConfig
from headrace.server.exchange import STREAM_END, HttpReply, StreamHead
from headrace.server.listener import Listener
from headrace.server.metrics import Metrics


class Live:
    """A listener with the scripted faces."""

    def __init__(self, listener: Listener, faces: Faces, metrics: Metrics) -> None:
        self.listener = listener
        self.faces = faces
        self.metrics = metrics
        self.port = listener.port
        self.inner = listener._port

    async def connect(self, raw: bytes = b"", receive_buffer: int = 0) -> Peer:
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        peer = Peer(sock)
        if raw:
            await peer.send(raw)
        return peer

    async def until(self, condition: Callable[[], Any], what: str = "") -> None:
        """Loop turns until `condition`; the time limit of the test is the limit."""
        while not condition():
            await asyncio.sleep(0.002)


class Peer:
    """A raw client that reads only when told to."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def read(self, size: int = 1 << 16) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.sock, size)

    async def read_to_end(self) -> bytes:
        found = b""
        while data := await self.read():
            found += data
        return found

    async def read_until(self, end: bytes) -> bytes:
        found = b""
        while end not in found:
            data = await self.read()
            assert data, found
            found += data
        return found

    async def read_to_close(self) -> bytes:
        """Frames up to the close frame, which is answered, as a good client does."""
        found = (await self.read_until(b"\r\n\r\n")).partition(b"\r\n\r\n")[2]
        while close_code(found) is None:
            found += await self.read()
        await self.send(closing(close_code(found)))
        assert await self.read_to_end() == b""
        return found

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()


@asynccontextmanager
async def live(
    *, keys: Iterable[str] = (), limits: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Live]:
    faces, metrics = Faces(), Metrics()
    config = ServerConfig(
        port=0, limits=msgspec.structs.replace(Limits(), **{**PATIENT, **(limits or {})}), **settings
    )
    listener = await Listener.start(config, faces.table(), keys=keys, metrics=metrics)
    found = Live(listener, faces, metrics)
    try:
        yield found
    finally:
        await listener.close()
        assert listener.connections == 0
        assert found.inner.census.open == 0 and found.inner.input.total == 0
        assert metrics.connections["http"] == metrics.connections["websocket"] == 0


@on_uvloop
async def test_a_frame_in_the_segment_of_the_handshake_is_not_lost() -> None:
    async with live() as server:
        peer = await server.connect(handshake("/ws") + text("early") + frame(1, b"la", fin=False))
        await server.until(lambda: server.faces.sessions)
        await peer.send(frame(0, b"ter") + closing(1000))
        _, _, rest = (await peer.read_to_end()).partition(b"\r\n\r\n")
        assert texts(rest) == ["early", "later"] and close_code(rest) == 1000
        peer.close()


@on_uvloop
async def test_the_clients_of_websockets_and_httpx() -> None:
    async with live(keys=["sesame"]) as server:
        key = {"Authorization": "Bearer sesame"}
        url = f"ws://127.0.0.1:{server.port}/both"
        async with websockets.connect(
            url, additional_headers=key, subprotocols=["text"], open_timeout=120
        ) as ws:  # type: ignore[list-item]
            assert ws.subprotocol == "text" and ws.response is not None
            assert ws.response.headers["x-request-id"]
            for message in ("", "a", "é" * 100, "x" * 70_000):
                await ws.send(message)
                assert await ws.recv() == message
            await ws.send(["in ", "three ", "pieces"])
            assert await ws.recv() == "in three pieces"
            await (await ws.ping())
        assert server.faces.sessions[0].closed_with == [1000]
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(url, open_timeout=120)
        assert refused.value.response.status_code == 401
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{server.port}", headers=key, timeout=120
        ) as client:
            assert (await client.post("/echo", content=b"x" * 1000)).content == b"x" * 1000

            async def parts() -> AsyncIterator[bytes]:
                for _ in range(20):
                    yield b"y" * 5_000

            assert (await client.post("/echo", content=parts())).content == b"y" * 100_000
            assert (await client.post("/echo", content=b"z" * (3 << 20))).status_code == 413
            assert (await client.get("/nothing")).status_code == 404

            async def talk() -> None:
                await server.until(lambda: server.faces.answers)
                answer = server.faces.answers[0]
                answer.say(StreamHead(), b"data: 1\n\n")
                await asyncio.sleep(0)
                answer.say(b"data: 2\n\n", STREAM_END)

            async with asyncio.TaskGroup() as group:
                group.create_task(talk())
                async with client.stream("GET", "/stream") as reply:
                    lines = [line async for line in reply.aiter_lines() if line]
            assert lines == ["data: 1", "data: 2"]


@on_uvloop
async def test_a_refusal_reaches_a_peer_that_is_still_sending() -> None:
    """Closing with unread bytes would reset the connection and take the reply along."""
    async with live() as server:
        for _ in range(5):
            peer = await server.connect()
            head = post("/echo", b"", "X: y").replace(b"Length: 0", b"Length: 8000000")
            sending = asyncio.ensure_future(peer.send(head + b"x" * 8_000_000))
            reply = only(await peer.read_to_end())
            assert reply.status == 413
            await sending
            peer.close()


@pytest.mark.parametrize("how", ["reset", "fin", "half-close"])
@on_uvloop
async def test_a_peer_that_leaves_is_noticed(how: str) -> None:
    async with live() as server:
        http = await server.connect(get("/stream"))
        ws = await server.connect(handshake("/ws"))
        await server.until(lambda: server.faces.answers and server.faces.sessions)
        answer, session = server.faces.answers[0], server.faces.sessions[0]
        answer.say(StreamHead())
        await http.read_until(b"\r\n\r\n")
        for peer in (http, ws):
            if how == "reset":
                peer.reset()
            elif how == "fin":
                peer.close()
            else:
                peer.sock.shutdown(socket.SHUT_WR)
        await server.until(lambda: answer.closed_count and session.closed_with)
        assert answer.closed_count == 1 and session.closed_with == [1006]
        await server.until(lambda: server.listener.connections == 0)
        http.close()
        ws.close()


@on_uvloop
async def test_ws07_a_stalled_reader_holds_little_and_delays_nobody() -> None:
    async with live(limits={"write_high_water": 32 << 10}) as server:
        stalled = await server.connect(handshake("/ws"), receive_buffer=4096)
        healthy = await server.connect(handshake("/ws"))
        await server.until(lambda: len(server.faces.sessions) == 2)
        slow, fast = server.faces.sessions
        slow_wire: Any = slow.wire
        outlet = slow_wire._outlet
        block = "t" * 1000
        pushed = 0
        while not outlet.paused:
            slow.say(block)
            pushed += 1
            await asyncio.sleep(0)
            assert pushed < 3_000, "the kernel must not swallow a stalled reader's output"
        asked_while_paused: list[int] = []
        render = slow.render

        def watched() -> list[str | bytes]:
            if outlet.paused:
                asked_while_paused.append(slow.renders)
            return render()

        slow.render = watched  # type: ignore[method-assign]
        await healthy.read_until(b"\r\n\r\n")
        for number in range(300):
            slow.say(block)
            fast.say(str(number))
            found = b""
            while not found:
                found = await healthy.read()
            assert texts(found) == [str(number)]
        # The kernel may have taken a little more meanwhile, but not this much: the reader is stalled now.
        await server.until(lambda: outlet.paused)
        assert not asked_while_paused, "not rendered for while stalled"
        size = slow_wire._transport.get_write_buffer_size()
        assert size <= (32 << 10) + len(block) * 2
        # It wakes: everything arrives, in order, nothing twice.
        wanted = (pushed + 300) * (len(block) + 4)
        found = await stalled.read_until(b"\r\n\r\n")
        rest = found.partition(b"\r\n\r\n")[2]
        while len(rest) < wanted:
            rest += await stalled.read()
        assert texts(rest) == [block] * (pushed + 300)
        stalled.close()
        healthy.close()


@on_uvloop
async def test_a_slow_reader_is_shed_at_its_limit() -> None:
    async with live(limits={"slow_reader_limit": 0.2, "ws_close_timeout": 0.1}) as server:
        ws = await server.connect(handshake("/ws"), receive_buffer=4096)
        http = await server.connect(get("/stream"), receive_buffer=4096)
        await server.until(lambda: server.faces.sessions and server.faces.answers)
        session, answer = server.faces.sessions[0], server.faces.answers[0]
        session.say("x" * (4 << 20))
        answer.say(StreamHead(), b"y" * (4 << 20))
        await server.until(lambda: session.closed_with and answer.closed_count)
        assert session.closed_with == [1013]
        await server.until(lambda: server.listener.connections == 0)
        ws.close()
        http.close()


@on_uvloop
async def test_a_large_last_reply_reaches_a_slow_peer() -> None:
    async with live() as server:
        body = os.urandom(1 << 20)
        peer = await server.connect(receive_buffer=4096)
        sending = asyncio.ensure_future(peer.send(post("/echo", body, "Connection: close")))
        found = b""
        while data := await peer.read(20_000):
            found += data
            await asyncio.sleep(0.001)
        await sending
        assert only(found).body == body
        peer.close()


@on_uvloop
async def test_ws12_drain_lets_answers_finish() -> None:
    async with live() as server:
        busy = await server.connect(handshake("/ws"))
        idle = await server.connect(handshake("/ws"))
        kept = await server.connect(get("/tell"))
        stream = await server.connect(get("/stream"))
        await server.until(lambda: len(server.faces.sessions) == 2 and server.faces.answers)
        server.faces.sessions[0].busy = True
        draining = asyncio.ensure_future(server.listener.drain(20))
        assert close_code(await idle.read_to_close()) == 1012
        assert only(await kept.read_to_end()).status == 200
        with pytest.raises(ConnectionRefusedError):
            await server.connect()
        answer = server.faces.answers[0]
        answer.say(StreamHead(), b"data: 1\n\n")
        await asyncio.sleep(0)
        answer.say(b"data: [DONE]\n\n", STREAM_END)
        assert only(await stream.read_to_end()).body == b"data: 1\n\ndata: [DONE]\n\n"
        assert not draining.done()
        session = server.faces.sessions[0]
        session.queue.append("the end")
        session.wire.close(1012)
        rest = await busy.read_to_close()
        assert texts(rest) == ["the end"] and close_code(rest) == 1012
        for peer in (busy, idle, kept, stream):
            peer.close()
        await draining
        assert server.listener.connections == 0


@pytest.mark.parametrize("how", ["deadline", "second signal"])
@on_uvloop
async def test_ws12_drain_ends_what_does_not(how: str) -> None:
    # Neither the drain nor the answer to a close frame is waited for: either takes longer than this test may.
    async with live(limits={"ws_close_timeout": 600.0}) as server:
        ws = await server.connect(handshake("/ws"))
        stream = await server.connect(get("/stream"))
        deaf = await server.connect(handshake("/ws"), receive_buffer=4096)
        await server.until(lambda: len(server.faces.sessions) == 2 and server.faces.answers)
        for session in server.faces.sessions:
            session.busy = True
        server.faces.sessions[1].say("x" * (4 << 20))
        draining = asyncio.ensure_future(server.listener.drain(0.1 if how == "deadline" else 600))
        if how == "second signal":
            asyncio.get_running_loop().call_later(0.1, server.listener.stop_now)
        assert close_code(await ws.read_to_close()) == 1012
        assert only(await stream.read_to_end()).status == 503
        ws.close()
        stream.close()
        await draining
        assert [session.closed_with for session in server.faces.sessions] == [[1012], [1012]]
        assert server.faces.answers[0].closed_count == 1
        deaf.close()


@on_uvloop
async def test_ws08_caps_over_real_sockets() -> None:
    async with live(keys=["k"], limits={"max_sockets": 3, "max_sockets_per_key": 2}) as server:
        url = f"ws://127.0.0.1:{server.port}/ws"
        key = {"Authorization": "Bearer k"}
        async with websockets.connect(url, additional_headers=key, open_timeout=120):
            async with websockets.connect(url, additional_headers=key, open_timeout=120):
                with pytest.raises(websockets.InvalidStatus) as by_key:
                    await websockets.connect(url, additional_headers=key, open_timeout=120)
                assert by_key.value.response.status_code == 429
                assert by_key.value.response.headers["retry-after"]
                peer = await server.connect()
                await server.until(lambda: server.listener.connections == 3)
                with pytest.raises(websockets.InvalidStatus) as by_process:
                    await websockets.connect(url, additional_headers=key, open_timeout=120)
                assert by_process.value.response.status_code == 503
                assert by_process.value.response.headers["retry-after"]
                peer.close()
            await server.until(lambda: server.listener.connections == 1)
            async with websockets.connect(url, additional_headers=key, open_timeout=120) as again:
                await again.send("room again")
                assert await again.recv() == "room again"


@on_uvloop
async def test_connections_leave_nothing_behind() -> None:
    async with live() as server:

        async def cycle() -> None:
            peers = [await server.connect(handshake("/ws") + text("a")) for _ in range(20)]
            peers += [await server.connect(get("/tell")) for _ in range(20)]
            peers += [await server.connect(get("/stream")) for _ in range(10)]
            await server.until(lambda: server.listener.connections == 50)
            await server.until(lambda: len(server.faces.answers) == 10)
            seen.extend(weakref.ref(connection) for connection in server.inner.connections)
            for number, peer in enumerate(peers):
                if number % 2:
                    peer.reset()
                else:
                    peer.close()
            await server.until(lambda: server.listener.connections == 0)
            server.faces.sessions.clear()
            server.faces.answers.clear()
            server.faces.requests.clear()

        seen: list[weakref.ref[Any]] = []
        await cycle()
        gc.collect()
        files = len(os.listdir("/proc/self/fd"))
        gc.disable()
        try:
            seen.clear()
            for _ in range(3):
                await cycle()
            assert len(seen) == 150
            # The last of them go with the loop's next turns, without the cycle collector; else time runs out here.
            await server.until(lambda: not any(ref() is not None for ref in seen))
            await server.until(lambda: len(os.listdir("/proc/self/fd")) == files)
        finally:
            gc.enable()


@on_uvloop
async def test_one_address_one_listener_and_a_clear_word_when_it_is_taken() -> None:
    async with live() as server:
        with pytest.raises(BadSetting, match=str(server.port)):
            await Listener.start(ServerConfig(port=server.port), Faces().table())
        with pytest.raises(BadSetting, match=r"no\.such\.host\.invalid"):
            await Listener.start(ServerConfig(host="no.such.host.invalid"), Faces().table())
        local = await Listener.start(ServerConfig(host="localhost", port=0), Faces().table())
        assert len(local._server.sockets) == 1
        await local.close()


def test_ws08_the_listener_survives_running_out_of_files() -> None:
    """In a process of its own: descriptors are used up, connections come, descriptors return."""
    script = textwrap.dedent(
        """
        import asyncio, resource, socket, os, uvloop
        from front_rig import Faces, get, only
        from headrace.server.config import ServerConfig
        from headrace.server.listener import Listener

        async def main():
            listener = await Listener.start(ServerConfig(port=0), Faces().table())
            loop = asyncio.get_running_loop()

            def client():
                sock = socket.socket()
                sock.setblocking(False)
                return sock

            clients = [client() for _ in range(8)]
            last = client()
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 4, 20000))
            held = []
            try:
                while True:
                    held.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                pass
            for sock in clients:
                await loop.sock_connect(sock, ("127.0.0.1", listener.port))
            await asyncio.sleep(0.1)
            assert listener.connections == 0, listener.connections
            for number in held:
                os.close(number)
            for sock in clients:
                sock.close()
            await loop.sock_connect(last, ("127.0.0.1", listener.port))
            await loop.sock_sendall(last, get("/tell", "Connection: close"))
            found = b""
            while data := await loop.sock_recv(last, 65536):
                found += data
            assert only(found).status == 200
            last.close()
            await listener.close()
            print("survived")

        uvloop.run(main())
        """
    )
    tests = os.path.dirname(os.path.dirname(__file__))
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": tests},
    )
    assert done.stdout.strip().endswith("survived"), done.stderr


@on_uvloop
async def test_a_late_answer_wakes_the_outbox_by_itself() -> None:
    async with live() as server:
        peer = await server.connect(get("/stream") + get("/tell"))
        await server.until(lambda: server.faces.answers)
        answer: ScriptedAnswer = server.faces.answers[0]
        asyncio.get_running_loop().call_later(0.01, answer.say, HttpReply(200, b"late"))
        found = await peer.read_until(b'"parameters": {}}')
        assert [reply.status for reply in replies(found)] == [200, 200]
        peer.close()


@on_uvloop
async def test_server_pings_reach_a_real_client_and_are_answered() -> None:
    async with live(limits={"ws_ping_interval": 0.02, "ws_ping_timeout": 120.0}) as server:
        peer = await server.connect(handshake("/ws"))
        rest = (await peer.read_until(b"\r\n\r\n")).partition(b"\r\n\r\n")[2]
        for _ in range(3):
            while not rest:
                rest = await peer.read()
            (ping,) = frames(rest)
            rest = b""
            await peer.send(frame(10, bytes(ping.data)))
        peer.close()
