"""A server without a model: it says tokens at known instants on every transport, and keeps the log of them.

What the load client reports is held against that log (`headrace bench truth`, the tests), and the client's own
speed is calibrated with it. It runs in a process of its own; `NullServer` starts one, GET /null/log gives its log.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import socket
import struct
import subprocess
import sys
import time
from typing import Any

import msgspec

from headrace.bench import frames
from headrace.bench.http_wire import WireError, allow_sockets
from headrace.bench.null_faces import ChatFace, Face, Question, ResponsesFace, refusal


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """What the server does. Counts begin at 1; 0 means never.

    first_s: from a request to its first token; gap_s: between tokens (0: as fast as readers take them).
    together: no answer begins before so many requests have come. merge: tokens in one event. role_first: a
    chat answer begins with an event that has a role and no text. empty_every: an empty event before every
    n-th token. usage: token counts at the end, where the request asks for them. freeze_at: with the arrival
    of that request the whole server stands still for freeze_s. error_at: an answer fails after so many
    tokens. cut_at: its connection is reset after so many. die_at: the process ends after so many tokens of
    all answers. refuse_every: every n-th request is answered with `status`. rejects: requests with one of
    these fields get 422. split: every event leaves in two writes. keep: HTTP connections are kept; without,
    an answer ends with its connection. hang_up: a kept connection is closed all the same, without a word,
    behind every answer. word: the text of a token.
    """

    first_s: float = 0.002
    gap_s: float = 0.001
    together: int = 0
    merge: int = 1
    role_first: bool = False
    empty_every: int = 0
    usage: bool = True
    freeze_at: int = 0
    freeze_s: float = 1.0
    error_at: int = 0
    cut_at: int = 0
    die_at: int = 0
    refuse_every: int = 0
    status: int = 503
    rejects: tuple[str, ...] = ()
    split: bool = False
    keep: bool = True
    hang_up: bool = False
    word: str = " word"


class Emit(msgspec.Struct, array_like=True):
    """An event with text: the instant right before its bytes were handed to the system, and its tokens."""

    at_ns: int
    tokens: int


class Entry(msgspec.Struct, kw_only=True):
    """One request as the server saw it. peer: the connection that it came on; end: length, error, cancelled, cut by
    this side, or left by the other."""

    number: int
    path: str
    peer: int
    prompt: str
    previous: str | None
    received_ns: int
    emits: list[Emit]
    end: str = ""


class Log(msgspec.Struct, kw_only=True):
    """entries: in the order of arrival. frozen: [from, to] of each freeze. refused: requests answered by errors."""

    entries: list[Entry]
    frozen: list[tuple[int, int]]
    refused: int = 0


class Stage:
    """What all connections of the server share."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.log = Log(entries=[], frozen=[])
        self.peers = self.requests = self.tokens = 0
        self.held: list[Speech] = []

    def admit(self) -> bool:
        """Count a request; false if it is to be refused. Stands still if the script says so."""
        script = self.script
        self.requests += 1
        if self.requests == script.freeze_at:
            begin = time.monotonic_ns()
            time.sleep(script.freeze_s)
            self.log.frozen.append((begin, time.monotonic_ns()))
        if script.refuse_every and self.requests % script.refuse_every == 0:
            self.log.refused += 1
            return False
        return True

    def hold(self, speech: Speech) -> None:
        """Let an answer begin, now or when enough requests have come."""
        self.held.append(speech)
        if self.requests >= self.script.together:
            held, self.held = self.held, []
            for one in held:
                one.begin()

    def spoke(self, tokens: int) -> None:
        self.tokens += tokens
        if self.script.die_at and self.tokens >= self.script.die_at:
            os._exit(9)


class Speech:
    """One answer being said, token after token, at its instants."""

    def __init__(self, peer: Peer, face: Face, entry: Entry) -> None:
        self.peer = peer
        self.face = face
        self.entry = entry
        self.script = peer.stage.script
        self.sent = 0
        self.over = False
        self.loop = asyncio.get_running_loop()
        self.next = 0.0
        self.timer: asyncio.Handle | None = None
        if opening := face.opening(self.script.role_first):
            peer.put(opening)
        peer.stage.hold(self)

    def begin(self) -> None:
        if not self.over:
            self.next = self.loop.time() + self.script.first_s
            self.timer = self.loop.call_at(self.next, self.speak)

    def speak(self) -> None:
        script, peer = self.script, self.peer
        if peer.paused:
            peer.stalled.append(self)
            return
        tokens = min(script.merge, self.face.question.tokens - self.sent)
        if script.empty_every and (self.sent + 1) % script.empty_every == 0:
            peer.put(self.face.delta("", self.sent))
        data = self.face.delta(script.word * tokens, self.sent + tokens)
        self.sent += tokens
        emit = Emit(time.monotonic_ns(), tokens)
        self.entry.emits.append(emit)
        peer.put(data)
        peer.stage.spoke(tokens)
        if script.cut_at and self.sent >= script.cut_at:
            self.entry.end = "cut"
            peer.reset()
        elif script.error_at and self.sent >= script.error_at:
            self.end("error", self.face.failing("failed as scripted"))
        elif self.sent >= self.face.question.tokens:
            self.end("length", self.face.closing(self.sent, "length"))
        elif script.gap_s:
            self.next += script.gap_s
            self.timer = self.loop.call_at(self.next, self.speak)
        else:
            self.timer = self.loop.call_soon(self.speak)

    def end(self, why: str, data: bytes) -> None:
        self.stop(why)
        self.peer.put(data)
        self.peer.finished(self)

    def cancel(self) -> None:
        if not self.over:
            self.end("cancelled", self.face.closing(self.sent, "cancelled"))

    def stop(self, why: str) -> None:
        self.over = True
        self.entry.end = self.entry.end or why
        if self.timer is not None:
            self.timer.cancel()


class Peer(asyncio.Protocol):
    """One connection: HTTP requests one after the other, or a websocket."""

    transport: asyncio.Transport

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        stage.peers += 1
        self.number = stage.peers
        self.rest = b""
        self.frames: frames.FrameReader | None = None
        self.speeches: list[Speech] = []
        self.stalled: list[Speech] = []
        self.paused = False
        self.streaming = False

    # -- bytes -------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        for speech in self.speeches:
            speech.stop("left")
        self.speeches.clear()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        stalled, self.stalled = self.stalled, []
        for speech in stalled:
            if not speech.over:
                speech.speak()

    def put(self, data: bytes) -> None:
        """Send whole events, framed as this connection needs it."""
        if self.frames is None and self.stage.script.keep:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if self.stage.script.split:
            half = len(data) // 2
            self.transport.write(data[:half])
            data = data[half:]
        self.transport.write(data)

    def reset(self) -> None:
        """Drop the connection as a crashed server would."""
        for speech in self.speeches:
            speech.stop("cut")
        self.speeches.clear()
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            if self.frames is not None:
                self.messages(data)
            else:
                self.rest += data
                self.requests()
        except (WireError, ValueError) as error:
            print(f"null server: {error}", file=sys.stderr)
            self.transport.abort()

    # -- HTTP --------------------------------------------------------------------------------------------------

    def requests(self) -> None:
        while not self.streaming and self.frames is None and b"\r\n\r\n" in self.rest:
            head, _, rest = self.rest.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            headers = {
                name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
            }
            length = int(headers.get("content-length", "0"))
            if len(rest) < length:
                return
            body, self.rest = rest[:length], rest[length:]
            method, path, _ = first.split(" ")
            if headers.get("upgrade", "").lower() == "websocket":
                self.upgrade(headers["sec-websocket-key"])
            elif method == "GET":
                self.small(path)
            else:
                self.ask(path, body)

    def small(self, path: str) -> None:
        if path.endswith("/v1/models"):
            self.whole(
                200, msgspec.json.encode({"object": "list", "data": [{"id": "null", "object": "model"}]})
            )
        elif path == "/null/log":
            self.whole(200, msgspec.json.encode(self.stage.log))
        else:
            self.whole(404, refusal(404))

    def whole(self, status: int, body: bytes) -> None:
        head = (
            f"HTTP/1.1 {status} said\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self.transport.write(head.encode() + body)

    def ask(self, path: str, body: bytes) -> None:
        if any(field in self.stage.script.rejects for field in msgspec.json.decode(body)):
            self.whole(422, refusal(422))
            return
        question = msgspec.json.decode(body, type=Question)
        entry = self.enter(path, question)
        if entry is None:
            self.whole(self.stage.script.status, refusal(self.stage.script.status))
            return
        told = self.stage.script.usage
        face: Face
        if path.endswith("/responses"):
            face = ResponsesFace(question, entry.number, told, socket=False)
        else:
            face = ChatFace(question, entry.number, told)
        framing = "Transfer-Encoding: chunked" if self.stage.script.keep else "Connection: close"
        self.transport.write(
            f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{framing}\r\n\r\n".encode()
        )
        self.streaming = True
        self.speeches.append(Speech(self, face, entry))

    def enter(self, path: str, question: Question) -> Entry | None:
        """A request in the log; None if it is refused."""
        received = time.monotonic_ns()
        if not self.stage.admit():
            return None
        entry = Entry(
            number=self.stage.requests,
            path=path,
            peer=self.number,
            prompt=question.last,
            previous=question.previous_response_id,
            received_ns=received,
            emits=[],
        )
        self.stage.log.entries.append(entry)
        return entry

    def finished(self, speech: Speech) -> None:
        self.speeches.remove(speech)
        if self.frames is not None:
            return
        self.streaming = False
        if not self.stage.script.keep:
            self.transport.close()
            return
        self.transport.write(b"0\r\n\r\n")
        if self.stage.script.hang_up:
            self.transport.close()
            return
        self.requests()

    # -- websocket ---------------------------------------------------------------------------------------------

    def upgrade(self, key: str) -> None:
        self.frames = frames.FrameReader()
        head = (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {frames.acceptance(key)}\r\n\r\n"
        )
        self.transport.write(head.encode())
        rest, self.rest = self.rest, b""
        self.messages(rest)

    def messages(self, data: bytes) -> None:
        assert self.frames is not None
        for opcode, payload in self.frames.feed(data):
            if opcode == frames.CLOSE:
                self.transport.close()
            elif opcode == frames.TEXT:
                self.event(msgspec.json.decode(payload, type=Question))

    def event(self, question: Question) -> None:
        if question.type == "response.cancel":
            for speech in list(self.speeches):
                if isinstance(speech.face, ResponsesFace) and speech.face.id == question.response_id:
                    speech.cancel()
            return
        entry = self.enter("ws", question)
        if entry is None:
            status = self.stage.script.status
            told: dict[str, Any] = {"type": "error", "status": status}
            if question.stream_id is not None:
                told["stream_id"] = question.stream_id
            told |= msgspec.json.decode(refusal(status))
            self.put(frames.frame(frames.TEXT, msgspec.json.encode(told), masked=False))
            return
        face = ResponsesFace(question, entry.number, self.stage.script.usage, socket=True)
        self.speeches.append(Speech(self, face, entry))


class NullServer:
    """A null server in a process of its own, from birth until `stop` or the end of the `with` block."""

    def __init__(self, script: Script) -> None:
        command = [sys.executable, "-P", "-m", "headrace.bench.null_server"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(msgspec.json.encode(script) + b"\n")
        self.process.stdin.flush()
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}"

    def log(self) -> Log:
        """What it has done so far."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            link.request("GET", "/null/log")
            return msgspec.json.decode(link.getresponse().read(), type=Log)
        finally:
            link.close()

    def stop(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def __enter__(self) -> NullServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


async def live(script: Script) -> None:
    """Serve until standard input ends."""
    loop = asyncio.get_running_loop()
    stage = Stage(script)
    server = await loop.create_server(lambda: Peer(stage), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.buffer.read)


def serve() -> None:
    """The process: a script comes in on the first line, the port goes out."""
    script = msgspec.json.decode(sys.stdin.buffer.readline(), type=Script)
    allow_sockets()
    asyncio.run(live(script))


if __name__ == "__main__":
    serve()
