"""What a client that knows headrace's own events is told beside an answer: how it flows, and what it missed.

Knows jobs and frames; knows no connection.
"""

from __future__ import annotations

from msgspec import Struct

from headrace.runtime.interface import TokenStream
from headrace.server.faces.extension import relaned, with_key
from headrace.server.faces.held import Held
from headrace.server.faces.jobs import Job
from headrace.server.protocol import extension as x
from headrace.server.protocol.codec import encode

REPLAY_EVENTS = 256  # of one response told again in one go; then the socket may brake


class Reports:
    """The reports of one connection. `paused`: the streams that were reported paused, and why."""

    def __init__(self) -> None:
        self.paused: dict[TokenStream, str] = {}

    def tell(self, job: Job) -> list[str]:
        """What can be told of this job now: first what it missed, some of it at a time, then what is new."""
        response, held = job.response, job.held
        run, stream = response.run, response.run.stream
        if held is not None and held.must_replay:
            return self._again(held)
        frames: list[str] = []
        if stream.held and not stream.starved and stream.pending:
            self._pause(job, "slow", frames)
        if stream in self.paused and not stream.starved:
            frames.append(_frame(x.Resumed(run.id, self.paused.pop(stream), stream.sent, stream_id=run.lane)))
        said = response.take()
        if held is not None:
            if held.next == 0 and said:
                said[0] = with_key(said[0], held.key)
            held.next = len(held.tape)
        frames += said
        if stream.starved:
            self._pause(job, "credit", frames)
        return frames

    def _again(self, held: Held) -> list[str]:
        response = held.job.response
        response.reread()
        frames = [relaned(raw, response.run.lane) for raw in held.tape.since(held.next, REPLAY_EVENTS)]
        if held.next == 0:
            frames[0] = with_key(frames[0], held.key)
        held.next += len(frames)
        return frames

    def _pause(self, job: Job, reason: str, frames: list[str]) -> None:
        run = job.response.run
        if run.stream not in self.paused:
            self.paused[run.stream] = reason
            frames.append(_frame(x.Paused(run.id, reason, run.stream.sent, run.lane)))


def _frame(event: Struct) -> str:
    return encode(event).decode()
