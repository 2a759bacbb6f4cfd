"""One websocket and the lanes on it. Lives once: when the socket ends, so does every stream it carries."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from headrace.clients.errors import ConnectionLost, ServerRefused
from headrace.clients.events import (
    AnyEvent,
    CacheEvicted,
    ErrorFrame,
    NotAnEvent,
    Pinned,
    Promoted,
    Pruned,
    Step,
    VerbRefused,
    lane_of,
    read_event,
    refusal_of,
)
from headrace.clients.stream import ResponseStream

log = logging.getLogger("headrace.client")


# Close codes after which the server holds no answer of this connection, or should not be asked for it again: a
# goodbye of ours, a broken rule, a message too big, somebody else who took the answers over.
FINAL = frozenset({1000, 1001, 1008, 1009, 4000, 4001, 4002, 4401})


class Link:
    """Routes what one socket says to the streams on its lanes. A lane carries one answer at a time; a free lane is
    used again, the one that rested longest first, because the server remembers the last answer of each."""

    def __init__(
        self,
        socket: ClientConnection,
        lanes: int,
        orphaned: Callable[[list[ResponseStream], ConnectionLost], None],
    ) -> None:
        """`orphaned(streams, why)`: the socket is gone, and the server still holds these answers."""
        self.lost: ConnectionLost | None = None
        self._orphaned = orphaned
        self._socket = socket
        self._free = deque(f"lane-{number}" for number in range(lanes))
        self._streams: dict[str, ResponseStream] = {}
        self._branching: dict[
            str, list[ResponseStream]
        ] = {}  # by lane: those of its branches that have not ended
        self._replies: dict[
            str, asyncio.Future[None]
        ] = {}  # what was asked for and not answered, by event_id
        self._writes: set[asyncio.Task[None]] = set()
        self._pins: dict[str, asyncio.Future[Pinned]] = {}  # asked for and not answered, by event_id
        self._pinned = 0
        self.evicted: set[str] = set()  # responses whose pins the server gave up before their time
        self._reader = asyncio.create_task(self._read(), name="headrace-client-link")

    def open(self, ended: Callable[[], None], lane: str | None = None) -> ResponseStream:
        """A stream on a free lane, on `lane` if that one is free. There must be a free lane. `ended` is called
        once, when the server has said its last word on it or the socket is gone."""
        assert self._free and self.lost is None
        if lane is not None and lane in self._free:
            self._free.remove(lane)
        else:
            lane = self._free.popleft()

        stream = ResponseStream(lane, ended)
        self._carry(stream, lane)
        return stream

    def branch(self, ended: Callable[[], None], count: int) -> tuple[str, list[ResponseStream]]:
        """A free lane, and streams on so many branches of it. There must be a free lane."""
        assert self._free and self.lost is None
        lane = self._free.popleft()
        streams = self._branching[lane] = []
        for number in range(count):
            stream = ResponseStream(f"{lane}#{number}", ended)
            streams.append(stream)
            self._carry(stream, stream.lane)
        return lane, list(streams)

    async def ask(self, event: dict[str, Any]) -> None:
        """Say a verb; returns when the server has done it. Raises ServerRefused or ConnectionLost."""
        if self.lost is not None:
            raise self.lost
        name = f"ask-{id(event)}-{len(self._replies)}"
        reply = self._replies[name] = asyncio.get_running_loop().create_future()
        self.post({**event, "event_id": name})
        try:
            await reply
        finally:
            self._replies.pop(name, None)

    def adopt(self, stream: ResponseStream) -> None:
        """Carry a stream whose own link was lost: the server tells it on from behind its last event. There must be
        a free lane."""
        assert self._free and self.lost is None
        self._carry(stream, self._free.popleft())
        self.post(stream.resumption())

    async def pin(self, response_id: str, seconds: float) -> Pinned:
        """The server's answer to a pin. Raises ServerRefused, or ConnectionLost if the socket ends first."""
        reply: asyncio.Future[Pinned] = asyncio.get_running_loop().create_future()
        self._pinned += 1
        name = f"pin-{self._pinned}"
        self._pins[name] = reply
        self.post({"type": "x.pin", "response_id": response_id, "ttl_s": seconds, "event_id": name})
        return await reply

    def _answer_pin(self, name: str, answer: Pinned | ServerRefused | ConnectionLost) -> None:
        reply = self._pins.pop(name, None)
        if reply is None or reply.done():
            return
        if isinstance(answer, Pinned):
            self.evicted.discard(answer.response_id)
            reply.set_result(answer)
        else:
            reply.set_exception(answer)

    def _carry(self, stream: ResponseStream, lane: str) -> None:
        def leave() -> None:
            del self._streams[lane]
            base = lane.partition("#")[0]
            group = self._branching.get(base)
            if group is None:
                self._free.append(lane)
                return
            group.remove(stream)
            if not group:
                del self._branching[base]
                self._free.append(base)

        self._streams[lane] = stream
        stream.ride(lane, self.post, leave)

    def post(self, event: dict[str, Any]) -> asyncio.Task[None]:
        """Write one client event. The write is a task of its own: it happens even if its caller is cancelled
        meanwhile, so a request is never half asked. The task raises ConnectionLost if the socket is gone."""
        task = asyncio.create_task(self._write(event))
        self._writes.add(task)
        task.add_done_callback(self._written)
        return task

    async def close(self) -> None:
        """Close the socket; streams still on it end with ConnectionLost."""
        await self._socket.close()
        await asyncio.wait([self._reader])

    async def _write(self, event: dict[str, Any]) -> None:
        try:
            await self._socket.send(msgspec.json.encode(event), text=True)
        except ConnectionClosed:
            # The reader knows why; it sees the end at the same moment.
            await asyncio.wait([self._reader])
            assert self.lost is not None
            raise self.lost from None

    def _written(self, task: asyncio.Task[None]) -> None:
        self._writes.discard(task)
        # Looked at here, because a caller that went away will not: what it was about ended with the connection.
        if not task.cancelled():
            task.exception()

    async def _read(self) -> None:
        try:
            while True:
                self._route(await self._socket.recv(decode=False))
        except ConnectionClosed as closed:
            self._lose(_why(closed))
        except NotAnEvent as error:
            self._lose(ConnectionLost(str(error)))
            await self._socket.close(1002)

    def _lose(self, lost: ConnectionLost) -> None:
        # In one turn of the loop: nobody can open a stream on a lost link in between.
        self.lost = lost
        for name in list(self._pins):
            self._answer_pin(name, ConnectionLost(str(lost), lost.close_code))
        orphans = []
        for stream in list(self._streams.values()):
            if stream.resumable and lost.close_code not in FINAL:
                stream.unseat()
                orphans.append(stream)
            else:
                stream.end("lost", ConnectionLost(str(lost), lost.close_code))
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(lost)
        if orphans:
            self._orphaned(orphans, lost)

    def _route(self, message: bytes) -> None:
        event = read_event(message)
        self._answer(event)
        lane = lane_of(event)
        if isinstance(event, ErrorFrame) and lane in self._branching:
            for branch in list(self._branching[lane]):  # the request for all of them was refused
                branch.feed(event)
            return
        if lane is not None:
            # Silence about a lane without a stream: its stream has ended here, and the server did not know yet.
            if stream := self._streams.get(lane):
                stream.feed(event)
            return
        if isinstance(event, Step):
            carried = {stream.response_id: stream for stream in self._streams.values()}
            for own in event.streams:
                if found := carried.get(own.response_id):
                    found.timeline.step(event, own)
        elif isinstance(event, Pinned):
            self._answer_pin(str(event.event_id), event)
        elif isinstance(event, VerbRefused):
            error = event.error
            self._answer_pin(str(event.event_id), ServerRefused(error.code, error.message, error.param))
        elif isinstance(event, CacheEvicted):
            self.evicted.add(event.response_id)
        elif isinstance(event, ErrorFrame):
            # The server could not even read which lane it was about: any request that has no answer yet.
            waiting = [stream for stream in self._streams.values() if stream.status == "queued"]
            for stream in waiting:
                stream.end("failed", refusal_of(event.error, event.status))
            if not waiting:
                log.warning("the server said an error that answers nothing: %s", event.error.message)

    def _answer(self, event: AnyEvent) -> None:
        """Whoever waits for the answer to a verb has it."""
        if not self._replies or not isinstance(event, (Pruned, Promoted, VerbRefused)):
            return
        reply = self._replies.get(str(event.event_id))
        if reply is None or reply.done():
            return
        if isinstance(event, VerbRefused):
            reply.set_exception(ServerRefused(event.error.code, event.error.message, event.error.param))
        else:
            reply.set_result(None)


def _why(closed: ConnectionClosed) -> ConnectionLost:
    frame = closed.rcvd
    if frame is None:
        own = closed.sent
        if own is not None and own.code == 1011:
            return ConnectionLost("the server stopped answering pings")
        return ConnectionLost("the connection to the server broke")
    words = {
        1000: "the connection was closed",
        1001: "the server closed an idle connection",
        1008: "the server closed the connection for breaking its rules",
        1009: "the server refused a message as too big",
        1011: "the server failed",
        1012: "the server is restarting",
        1013: "the server is overloaded",
    }.get(frame.code, f"the server closed the connection with code {frame.code}")
    return ConnectionLost(f"{words}: {frame.reason}" if frame.reason else words, frame.code)
