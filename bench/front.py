"""What one frame and one SSE chunk cost the server in CPU time, for N sockets over loopback.

    python -P -m headrace.bench.front --sockets 1,64,512 --rounds 200

A round is a step of the engine: every stream says one delta, then the outbox flushes once. The readers live in a
process of their own and only count bytes. CPU time is that of the server process alone; "kernel" is the part of it
that was spent in system calls. "library frames" renders each frame through websockets' own serializer instead of
websocket.py's precomputed headers, in the same run. The last line printed is the JSON that --out writes.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvloop
from websockets.frames import TEXT, Frame

from headrace.server.config import Limits, ServerConfig
from headrace.server.exchange import HttpRequest, HttpRoute, Part, RouteTable, SocketRoute, StreamHead, Wire
from headrace.server.listener import Listener, make_outbox

HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
GET = b"GET /sse HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Talker:
    """A session and an answer in one: says what `speak` put, and nothing else."""

    def __init__(self, wire: Wire, streamed: bool) -> None:
        self.wire = wire
        self.texts: list[str | bytes] = []
        self.parts: list[Part] = [StreamHead()] if streamed else []
        self.streamed = streamed

    def speak(self, text: str, data: bytes) -> None:
        if self.streamed:
            self.parts.append(data)
        else:
            self.texts.append(text)
        self.wire.dirty()

    def received(self, message: str | bytes) -> None: ...

    def render(self) -> Any:
        if self.streamed:
            parts, self.parts = self.parts, []
            return parts
        texts, self.texts = self.texts, []
        return texts

    def ping(self) -> list[Part]:
        return []

    def closed(self, code: int = 0) -> None: ...

    def drain(self) -> None: ...


def read_all(port: int, kind: str, sockets: int) -> None:
    """The reader process: opens the sockets, says so, counts bytes until the server closes them."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        socks = []
        for _ in range(sockets):
            sock = socket.socket()
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", port))
            await loop.sock_sendall(sock, GET if kind == "sse" else HANDSHAKE)
            socks.append(sock)
        buffer = bytearray(1 << 18)

        async def drain(sock: socket.socket) -> int:
            total = 0
            while size := await loop.sock_recv_into(sock, buffer):
                total += size
            return total

        print("open", flush=True)
        counts = await asyncio.gather(*(drain(sock) for sock in socks))
        print(sum(counts), flush=True)

    uvloop.run(run())


async def measure(
    kind: str, sockets: int, rounds: int, size: int, frames: int, library: bool
) -> dict[str, Any]:
    """One row: `rounds` flushes of `frames` deltas of `size` bytes to each of `sockets` peers."""
    loop = asyncio.get_running_loop()
    config = ServerConfig(
        port=0, limits=Limits(max_sockets=sockets + 8, max_sockets_per_ip=sockets + 8), sse_ping=0.0
    )
    talkers: list[Talker] = []
    joined = asyncio.Event()

    def join(request: HttpRequest, wire: Wire) -> Talker:
        talkers.append(Talker(wire, kind == "sse"))
        if len(talkers) == sockets:
            joined.set()
        return talkers[-1]

    table = RouteTable({"/sse": HttpRoute(frozenset({"GET"}), join)}, {"/ws": SocketRoute(join)})
    outbox = make_outbox(loop, config)
    listener = await Listener.start(config, table, outbox=outbox)
    reader = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "headrace.bench.front", "--reader", f"{listener.port},{kind},{sockets}",
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert reader.stdout is not None
    await reader.stdout.readline()
    await joined.wait()
    text = ("x" * size) if kind == "ws" else ""
    data = b"data: " + b"x" * (size - 8) + b"\n\n"
    if library:
        for talker in talkers:
            _through_library(talker)
    gc.collect()
    gc.disable()
    written, writes = outbox.bytes_out, outbox.writes
    usage = resource.getrusage(resource.RUSAGE_SELF)
    python = 0.0
    for _ in range(rounds):
        before = time.process_time()
        for talker in talkers:
            for _ in range(frames):
                talker.speak(text, data)
        outbox.flush()
        python += time.process_time() - before
        await asyncio.sleep(0)  # the loop hands the bytes to the kernel
        # Deltas for a paused reader would be coalesced, and the next round would measure something else.
        while any(talker.wire._outlet.paused for talker in talkers):  # type: ignore[attr-defined]  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    after = resource.getrusage(resource.RUSAGE_SELF)
    gc.enable()
    user, kernel = after.ru_utime - usage.ru_utime, after.ru_stime - usage.ru_stime
    total = rounds * sockets * frames
    row = {
        "kind": "library frames" if library else {"ws": "websocket", "sse": "SSE"}[kind],
        "sockets": sockets,
        "frames_per_flush": frames,
        "cpu_us": round((user + kernel) / total * 1e6, 2),
        "kernel_us": round(kernel / total * 1e6, 2),
        "render_us": round(python / total * 1e6, 2),
        "per_core_second": round(total / (user + kernel)),
        "bytes_per_frame": round((outbox.bytes_out - written) / total, 1),
        "writes_per_flush": round((outbox.writes - writes) / (rounds * sockets), 3),
    }
    await listener.close()
    await reader.communicate()
    return row


def _through_library(talker: Talker) -> None:
    """Let this socket's frames be written by websockets' serializer."""
    connection: Any = talker.wire
    outlet = connection._outlet

    def put(messages: list[str]) -> None:
        for message in messages:
            outlet.put(Frame(TEXT, message.encode()).serialize(mask=False, extensions=[]))

    connection._put = put


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table and, as the last line, its JSON."""
    parser = argparse.ArgumentParser(
        prog="headrace bench front", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--sockets", default="1,64,512", help="numbers of sockets [1,64,512]")
    parser.add_argument("--rounds", type=int, default=200, help="flushes per row [200]")
    parser.add_argument("--size", type=int, default=200, help="bytes of one delta [200]")
    parser.add_argument("--frames", type=int, default=1, help="deltas of one stream in a flush [1]")
    parser.add_argument("--out", default="", help="write the JSON there too")
    parser.add_argument("--reader", default="", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.reader:
        port, kind, sockets = given.reader.split(",")
        read_all(int(port), kind, int(sockets))
        return 0
    rows = []
    print(
        f"{'':<16}{'sockets':>8}{'cpu µs':>9}{'kernel':>9}{'render':>9}{'per core s':>12}{'bytes':>8}{'writes':>8}"
    )
    for sockets in map(int, given.sockets.split(",")):
        for kind, library in (("ws", False), ("ws", True), ("sse", False)):
            row = uvloop.run(measure(kind, sockets, given.rounds, given.size, given.frames, library))
            rows.append(row)
            print(
                f"{row['kind']:<16}{row['sockets']:>8}{row['cpu_us']:>9}{row['kernel_us']:>9}{row['render_us']:>9}"
                f"{row['per_core_second']:>12}{row['bytes_per_frame']:>8}{row['writes_per_flush']:>8}",
                flush=True,
            )
    asked = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(asked, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    result = {
        "bench": "front",
        "commit": commit.stdout.strip(),
        "machine": {
            "cpus": os.cpu_count(),
            "machine": platform.machine(),
            "python": platform.python_version(),
        },
        "versions": {name: version(name) for name in ("uvloop", "websockets", "h11")},
        "settings": {"rounds": given.rounds, "size": given.size, "frames": given.frames},
        "rows": rows,
    }
    line = json.dumps(result)
    if given.out:
        Path(given.out).write_text(line + "\n")
    print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
