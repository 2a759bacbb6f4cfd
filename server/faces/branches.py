"""Several answers to one request, side by side: `x_branches`, `x.prune`, `x.promote`.

Knows jobs and lanes; knows no frames.

Branch k of the request in lane L is a response of its own in lane `L#k`. Branch 0 is the request's own answer, and
runs from the beginning. The others are forks of it, and begin when it has the token at which they part: so the
prompt is computed once, and its pages are shared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec import UNSET, Raw, structs

from headrace.runtime.interface import FinishReason, ForkPlace, Refusal, TokenStream
from headrace.server.conversation import Conversations, Turn
from headrace.server.protocol import extension as x
from headrace.server.protocol.codec import decode
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.responses import ResponseCreate, ResponseRequest
from headrace.server.session import base_lane, branch_lane

if TYPE_CHECKING:
    from headrace.server.faces.jobs import Job
    from headrace.server.faces.responses_ws import ResponsesSocket

_SEEDS = 1 << 64


@dataclass(slots=True, eq=False)
class Branching:
    """What is to branch from a job's answer. `turn`, what all of them continue, is held for them."""

    lane: str | None  # whose branches they are
    at: int  # the answer's tokens that they begin with, at least
    doubt: float | None  # nats: they part at the first token of more doubt than this
    least: int  # tokens that the answer had when it began: of a fork
    to_come: list[int]  # the numbers of those that have not begun
    turn: Turn | None
    store: Conversations

    def due(self, stream: TokenStream) -> int | None:
        """With how many tokens of the answer they begin now; None: not yet, or never."""
        # A token of its own says that all before it was computed and may be shared.
        if stream.head <= self.least or stream.finish in (FinishReason.CANCELLED, FinishReason.ERROR):
            return None
        at = self.at = max(self.at, self.least)
        if self.doubt is None:
            return at if stream.said >= at else None
        while self.at < stream.said:
            doubt = stream.doubt(self.at)
            if doubt is not None and doubt > self.doubt:
                return self.at
            self.at += 1
        return None

    def release(self) -> None:
        """None of them will begin any more."""
        self.to_come = []
        turn, self.turn = self.turn, None
        if turn is not None:
            self.store.release(turn)


def wanted(request: ResponseRequest, limit: int) -> x.Branching | None:
    """The branches that a request asks for. limit: answers in flight on a connection. Raises WireError."""
    branching = request.x_branches if isinstance(request, ResponseCreate) else None
    if branching is None:
        return None
    assert isinstance(request, ResponseCreate)
    if branching.n > limit:
        what = f"x_branches.n: a connection has at most {limit} answers in flight"
        raise WireError("invalid_value", what, "x_branches")
    if request.generate is False:
        raise WireError("invalid_value", "x_branches: a warm-up has no answer", "x_branches")
    return branching


def answers(request: ResponseRequest) -> int:
    """How many answers a request asks for."""
    if isinstance(request, ResponseCreate) and request.x_branches is not None:
        return request.x_branches.n
    return 1


def single(request: ResponseRequest) -> ResponseRequest:
    """The request for one of its branches."""
    if isinstance(request, ResponseCreate) and request.x_branches is not None:
        return structs.replace(request, x_branches=None)
    return request


def doubts(branching: x.Branching | None) -> bool:
    """It is asked how sure the model is of each token."""
    return branching is not None and isinstance(branching.at, x.EntropyAbove)


def expect(socket: ResponsesSocket, job: Job, branching: x.Branching, lane: str | None) -> None:
    """`job` is branch 0 of `lane` and begins now; the others have their places."""
    response = job.response
    turn = response.parent
    if turn is not None:
        response.store.hold(turn)
    response.run.stream.outlive()  # it may end with the very token at which they part
    at = branching.at if isinstance(branching.at, int) else 0
    doubt = branching.at.entropy_gt if isinstance(branching.at, x.EntropyAbove) else None
    to_come = list(range(1, branching.n))
    job.branching = Branching(lane, at, doubt, response.run.stream.head, to_come, turn, response.store)
    socket.lanes.reserved += len(to_come)


def begin(socket: ResponsesSocket, job: Job) -> None:
    """The branches of this job begin, if it has come so far."""
    branching = job.branching
    assert branching is not None
    at = branching.due(job.response.run.stream)
    if at is None:
        return
    job.branching = None
    request = job.response.run.request
    for number in branching.to_come:
        socket.lanes.reserved -= 1
        lane = branch_lane(branching.lane, number)
        seed = None if request.seed is None else (request.seed + number) % _SEEDS
        own = structs.replace(request, seed=seed)
        try:
            socket.begin_fork(job.response, branching.turn, ForkPlace(at), own, lane)
            socket.responses.branch_counts.begun += 1
        except (WireError, Refusal) as error:
            socket.refuse(error, lane)
    branching.release()


def forget(socket: ResponsesSocket, job: Job, *, told: bool) -> None:
    """The branches of this job that have not begun never will; `told`: their reader hears of it."""
    branching, job.branching = job.branching, None
    if branching is None:
        return
    for number in branching.to_come:
        socket.lanes.reserved -= 1
        if told:
            socket.responses.branch_counts.pruned += 1
            socket.say(x.Pruned(branch_lane(branching.lane, number), 0))
    branching.release()


def prune(socket: ResponsesSocket, message: str | bytes, fields: dict[str, Raw]) -> None:
    """`x.prune`: one branch less."""
    verb = decode(message, x.Prune, fields=fields).value
    event_id = UNSET if verb.event_id is None else verb.event_id
    job = _branch(socket, verb.branch)
    if job is not None and job.lasts:
        _cut(socket, job, event_id)
        return
    waiting, number = _waiting(socket, verb.branch)
    if waiting is None:
        raise WireError("response_not_found", "no such branch runs on this connection", "branch")
    waiting.to_come.remove(number)
    socket.lanes.reserved -= 1
    socket.responses.branch_counts.pruned += 1
    socket.say(x.Pruned(verb.branch, 0, event_id))


def promote(socket: ResponsesSocket, message: str | bytes, fields: dict[str, Raw]) -> None:
    """`x.promote`: one branch is the answer of its lane."""
    verb = decode(message, x.Promote, fields=fields).value
    chosen, base = verb.branch, base_lane(verb.branch)
    job = _branch(socket, chosen)
    ended = socket.latest.of(chosen) if base != chosen else None
    if job is None and ended is None:
        raise WireError("response_not_found", "no such branch runs or has ended here", "branch")
    for other in running_branches(socket, base):
        forget(socket, other, told=True)
        other.promoted = other is job
        if other is not job and other.lasts:
            _cut(socket, other)
    if job is None:
        socket.latest.promote(chosen)
    socket.latest.forget_branches(base)
    response_id = ended if job is None else job.response.run.id
    assert response_id is not None
    socket.responses.branch_counts.promoted += 1
    socket.say(x.Promoted(chosen, response_id, UNSET if verb.event_id is None else verb.event_id))


def running_branches(socket: ResponsesSocket, lane: str | None) -> list[Job]:
    """The jobs that run in branches of this lane."""
    jobs = [socket.running(name) for name in socket.lanes.branches(lane)]
    return [job for job in jobs if job is not None]


def expected(socket: ResponsesSocket, lane: str | None) -> bool:
    """A branch is to begin in this lane: nobody else may take it before."""
    if lane is None or (base := base_lane(lane)) == lane:
        return False
    # A request that is looked up may be one for branches: it takes their lanes with its own.
    return socket.looks_up(base) or _waiting(socket, lane)[0] is not None


def _cut(socket: ResponsesSocket, job: Job, event_id: str | object = UNSET) -> None:
    """A branch that runs ends now, and its reader hears why before it hears of the end."""
    forget(socket, job, told=True)  # they would have begun as it does
    stream = job.response.run.stream
    assert job.lane is not None
    socket.responses.branch_counts.pruned += 1
    socket.say(x.Pruned(job.lane, stream.head, event_id))  # type: ignore[arg-type]  # UNSET has a type of its own
    socket.stop(job)


def _branch(socket: ResponsesSocket, lane: str) -> Job | None:
    """The job that runs in this lane, if it is one of a branch."""
    return socket.running(lane) if base_lane(lane) != lane else None


def _waiting(socket: ResponsesSocket, lane: str) -> tuple[Branching | None, int]:
    """Where a branch waits that has not begun, and its number."""
    for job in running_branches(socket, base_lane(lane)):
        branching = job.branching
        if branching is not None:
            for number in branching.to_come:
                if branch_lane(branching.lane, number) == lane:
                    return branching, number
    return None, 0


@dataclass(slots=True)
class BranchCounts:
    """Of all connections, since the start."""

    begun: int = 0  # beside the answers that they are branches of
    pruned: int = 0
    promoted: int = 0

    def stats(self) -> dict[str, float]:
        """Facts for metrics."""
        return {
            "branches_begun": self.begun,
            "branches_pruned": self.pruned,
            "branches_promoted": self.promoted,
        }
