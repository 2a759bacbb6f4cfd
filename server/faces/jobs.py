"""What takes a lane of the Responses socket: a response in flight, or the search for what it continues."""

from __future__ import annotations

from dataclasses import dataclass, field

from headrace.server.faces.branches import Branching
from headrace.server.faces.held import Desk, Held, HeldResponses
from headrace.server.faces.running import RunningResponse
from headrace.server.faces.steering import Steer, Steering
from headrace.server.protocol.extension import Buffer
from headrace.server.protocol.responses import ResponseCreate, ResponseRequest


@dataclass(slots=True, eq=False)
class Job:
    """A response in flight: its lane, and the steers that it has accepted, or that its beginning commits."""

    lane: str | None
    response: RunningResponse
    continues_lane: bool  # its parent is this lane's own last response
    own: bool  # the client asked for it itself; otherwise it follows a steered one
    commits: list[Steer]
    steering: Steering = field(default_factory=Steering)
    held: Held | None = None  # its client may come back to it
    branching: Branching | None = None  # what is to branch from its answer
    promoted: bool = False  # a branch that its lane remembers as its answer

    @property
    def lasts(self) -> bool:
        """It runs, or it has ended by itself and its reader's credit does not reach that end."""
        stream = self.response.run.stream
        return stream.finish is None or stream.starved

    @property
    def drops(self) -> bool:
        """It runs, and its client would rather lose it than wait for it."""
        request = self.response.run.request
        running = self.response.run.stream.finish is None
        return running and isinstance(request, ResponseCreate) and request.x_on_slow == "drop"

    @property
    def reports(self) -> bool:
        """Its client knows what x.paused means."""
        request = self.response.run.request
        return self.held is not None or (
            isinstance(request, ResponseCreate) and (request.x_credit, request.x_on_slow) != (None, None)
        )


@dataclass(slots=True, eq=False)
class Fetching:
    """What takes a lane while the response that its request continues is looked up."""

    cancelled: bool = False
    later: bool = False  # it was not in memory


@dataclass(frozen=True, slots=True)
class Parked:
    """Accepted steers that wait, after the response `target`, for the client's next request in this lane."""

    target: str
    steers: list[Steer]


def equip(job: Job, request: ResponseRequest, held: HeldResponses, desk: Desk, *, extended: bool) -> None:
    """Give the job what its client asked for beside the answer: credit, a window, a way back. Before it is told."""
    if not isinstance(request, ResponseCreate):
        return
    stream = job.response.run.stream
    stream.limit = request.x_credit
    if isinstance(request.x_on_slow, Buffer):
        stream.window = request.x_on_slow.buffer
    leaves = request.x_on_disconnect or ("continue" if extended else "cancel")
    if leaves != "cancel":
        job.held = held.hold(job, desk, pauses=leaves == "pause")
        stream.outlive()
