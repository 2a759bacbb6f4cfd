"""What each owner of requests has had of the server, so that the one who had least is next. Numbers only.

An owner is charged for every token whose KV was computed for it, divided by its weight, while its requests run. Who
was away comes back with no more credit than whoever has least among those present: time not used is not saved up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from headrace.runtime.request import Req

OUTPUT_COST = 4.0  # prompt tokens that one generated token counts for: it takes a row of a step for itself
MOST_ABSENT = 256  # owners without a request whose account is kept


class Shares:
    """`arrive` and `depart` for each live request, `settle` when one leaves the batch."""

    def __init__(self) -> None:
        self._had: dict[str, float] = {}
        self._live: Counter[str] = Counter()

    def arrive(self, req: Req) -> None:
        owner = req.claim.owner
        if not self._live[owner]:
            floor = min((self._had[other] for other in self._live if self._live[other]), default=None)
            if floor is not None:
                self._had[owner] = max(self._had.get(owner, floor), floor)
            else:
                self._had.setdefault(owner, 0.0)
        self._live[owner] += 1

    def depart(self, req: Req) -> None:
        """`req` has ended. Accounts of those who are away are kept while they are few."""
        owner = req.claim.owner
        self._live[owner] -= 1
        if self._live[owner]:
            return
        del self._live[owner]
        if not self._live:
            self._had.clear()  # nobody is there to be compared with
        elif len(self._had) > MOST_ABSENT + len(self._live):
            for absent in [each for each in self._had if each not in self._live][:MOST_ABSENT]:
                del self._had[absent]

    def settle(self, req: Req) -> None:
        """Charge `req` for what was computed since it was charged last."""
        fed = req.computed_len - req.charged_len
        if fed > 0:  # what was taken back and is computed again is nobody's wish, and costs nothing
            told = min(fed, max(0, req.computed_len - req.prompt_len))
            self._had[req.claim.owner] += (fed - told + OUTPUT_COST * told) / req.claim.weight
            req.charged_len = req.computed_len

    def least(self, owners: Iterable[str], running: Iterable[Req]) -> str:
        """Who of `owners` has had least; among equals, the first."""
        for req in running:
            self.settle(req)
        return min(owners, key=self._had.__getitem__)

    @property
    def several(self) -> bool:
        """More than one owner has a live request."""
        return len(self._live) > 1

    def check(self, live: Iterable[Req]) -> None:
        assert self._live == Counter(req.claim.owner for req in live), "an owner is counted wrongly"
        assert set(self._live) <= set(self._had)
