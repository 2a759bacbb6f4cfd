"""What each lane of a connection remembers: its last response, which continues even if it was not stored.

Knows turns; knows no wire format. Bounded by the lanes that a connection may have, and by the branches of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from headrace.server.faces.lineage import Ancestor
from headrace.server.session import Latest, base_lane


class LatestResponses:
    """The last responses of one connection's lanes; `release(latest)` gives back what one holds."""

    def __init__(self, release: Callable[[Latest], None]) -> None:
        self._release = release
        self._latest: dict[str | None, Latest] = {}

    def __iter__(self) -> Iterator[Latest]:
        return iter(self._latest.values())

    def find(self, response_id: str) -> Latest | None:
        """This response, if a lane remembers it."""
        return next((latest for latest in self if latest.response_id == response_id), None)

    def near(self, response_id: str) -> Ancestor | None:
        """This response as what a request may go on from: even if it was not stored."""
        latest = self.find(response_id)
        return None if latest is None else Ancestor(latest.turn, latest.items)

    def continues(self, lane: str | None, previous: str | None) -> bool:
        """Who goes on from `previous` in this lane goes on from the lane's own last response."""
        return previous is not None and self.of(lane) == previous

    def of(self, lane: str | None) -> str | None:
        """The id of the response that this lane remembers."""
        latest = self._latest.get(lane)
        return None if latest is None else latest.response_id

    def put(self, lane: str | None, latest: Latest) -> None:
        """The lane remembers this one, and holds its turn from now on."""
        self.forget(lane)
        self._latest[lane] = latest

    def promote(self, branch: str) -> None:
        """What a branch remembers is the last response of its lane."""
        lane = base_lane(branch)
        self.forget(lane)
        self._latest[lane] = self._latest.pop(branch)

    def forget(self, lane: str | None) -> None:
        """The lane remembers nothing."""
        if (latest := self._latest.pop(lane, None)) is not None:
            self._release(latest)

    def forget_branches(self, lane: str | None) -> None:
        """The branches of this lane remember nothing."""
        for name in [name for name in self._latest if name != lane and base_lane(name) == lane]:
            self.forget(name)

    def clear(self) -> None:
        """No lane remembers anything."""
        for lane in list(self._latest):
            self.forget(lane)
