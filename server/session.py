"""One connection's lanes: which request runs, which waits. Knows no wire format.

Requests of one lane run one after the other, lanes run side by side. Everything a client can make grow here is
bounded: requests in flight, requests waiting and their bytes, named lanes.

A request may be answered several times: its answers run in lanes of their own, the branches `LANE#0`, `LANE#1` and
so on, and `LANE` itself is taken as long as one of them runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from msgspec import Raw

from headrace.runtime.interface import Favour
from headrace.server.conversation import Turn

BRANCH = "#"  # between the name of a lane and the number of its branch; no client's own name has one

W = TypeVar("W")  # what waits: a decoded request
J = TypeVar("J")  # what runs


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """OpenAI's numbers where OpenAI gives one; `waiting_bytes` bounds the decoded requests that wait."""

    in_flight: int = 16
    waiting: int = 64
    waiting_bytes: int = 64 << 20
    named: int = 32


class WaitingBudget:
    """Bytes of requests that wait, on all connections together: one's share is small, ten thousand are not."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def take(self, size: int) -> bool:
        """Count `size` bytes; False, and nothing is counted, if they do not fit."""
        if not self.fits(size):
            return False
        self.used += size
        return True

    def fits(self, size: int) -> bool:
        """Whether `take(size)` would succeed."""
        return self.used + size <= self.limit

    def charge(self, size: int) -> None:
        """Count `size` bytes (a negative number gives back), over the limit too: for what cannot be refused."""
        self.used += size
        assert self.used >= 0, "more was given back than taken"

    def give_back(self, size: int) -> None:
        """These bytes wait no longer."""
        self.used -= size
        assert self.used >= 0, "more was given back than taken"


def branch_lane(lane: str | None, number: int) -> str:
    """The lane of a branch."""
    return f"{lane or ''}{BRANCH}{number}"


def base_lane(lane: str | None) -> str | None:
    """The lane that a lane is a branch of; itself, if it is none."""
    if lane is None or BRANCH not in lane:
        return lane
    return lane.partition(BRANCH)[0] or None


@dataclass(frozen=True, slots=True)
class Latest:
    """The last response of a lane: continues even if it was not stored. Holds its turn; `items()` gives what it was
    asked with and what it answered, JSON by id."""

    response_id: str
    turn: Turn
    items: Callable[[], Mapping[str, Raw]]
    favour: Favour | None = None  # of the cache, as long as it is the latest


@dataclass(frozen=True, slots=True)
class Waiting(Generic[W]):
    lane: str | None
    request: W
    size: int
    answers: int


class Lanes(Generic[W, J]):
    """The lanes of one connection; None is the unnamed one."""

    def __init__(self, limits: LaneLimits, budget: WaitingBudget) -> None:
        self.limits = limits
        self.budget = budget
        self.reserved = 0  # answers that are to come beside those that run
        self._named: set[str] = set()
        self._running: dict[str | None, J] = {}
        self._branches: Counter[str | None] = Counter()  # running ones, by the lane that they are branches of
        self._waiting: list[Waiting[W]] = []
        self._waiting_bytes = 0

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return not self._running and not self._waiting

    @property
    def in_flight(self) -> int:
        """Answers that run, or have their place."""
        return len(self._running) + self.reserved

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @property
    def waiting_bytes(self) -> int:
        """The bytes that they are counted with."""
        return self._waiting_bytes

    def name(self, lane: str | None) -> bool:
        """Make the lane known; False if it would be one named lane too many."""
        if lane is None or lane in self._named:
            return True
        if len(self._named) >= self.limits.named:
            return False
        self._named.add(lane)
        return True

    def wait(self, lane: str | None, request: W, size: int, answers: int = 1) -> bool:
        """Queue a request for so many answers behind its lane; False if too many, or too many bytes, wait
        already."""
        full = len(self._waiting) >= self.limits.waiting or (
            bool(self._waiting) and self._waiting_bytes + size > self.limits.waiting_bytes
        )
        # A request that can start now only passes through the queue: the limit is for those that must stay.
        stays = self.busy(lane) or self.in_flight + answers > self.limits.in_flight
        if stays and (full or not self.budget.take(size)):
            return False
        if not stays:
            size = 0
        self._waiting.append(Waiting(lane, request, size, answers))
        self._waiting_bytes += size
        return True

    def next(self) -> tuple[str | None, W] | None:
        """Take the oldest waiting request whose lane is free, if its answers may run beside the others."""
        if not self._waiting or self.in_flight >= self.limits.in_flight:
            return None
        for index, waiting in enumerate(self._waiting):
            if not self.busy(waiting.lane):
                if self.in_flight + waiting.answers > self.limits.in_flight:
                    return None  # nobody overtakes it: else it would wait for ever behind smaller ones
                del self._waiting[index]
                self._waiting_bytes -= waiting.size
                self.budget.give_back(waiting.size)
                return waiting.lane, waiting.request
        return None

    def start(self, lane: str | None, job: J) -> None:
        """The lane is taken by `job` until `leave`."""
        assert lane not in self._running, "one response at a time in a lane"
        self._running[lane] = job
        if (base := base_lane(lane)) != lane:
            self._branches[base] += 1

    def leave(self, lane: str | None) -> None:
        """The lane's job has told its end."""
        del self._running[lane]
        if (base := base_lane(lane)) != lane:
            self._branches[base] -= 1
            if not self._branches[base]:
                del self._branches[base]

    def busy(self, lane: str | None) -> bool:
        """A job runs in this lane, or in a branch of it."""
        return lane in self._running or lane in self._branches

    def branches(self, lane: str | None) -> list[str | None]:
        """The branches of this lane in which a job runs."""
        if lane not in self._branches:
            return []
        return [name for name in self._running if name != lane and base_lane(name) == lane]

    def running(self, lane: str | None) -> J | None:
        """The job that runs in this lane."""
        return self._running.get(lane)

    def jobs(self) -> Iterator[J]:
        """Every job that runs (a snapshot: they may leave meanwhile)."""
        return iter(list(self._running.values()))

    def take_waiting(self) -> list[tuple[str | None, W]]:
        """Empty the queue and return what was in it, oldest first."""
        taken = [(waiting.lane, waiting.request) for waiting in self._waiting]
        self._waiting.clear()
        self.budget.give_back(self._waiting_bytes)
        self._waiting_bytes = 0
        return taken
