"""Who waits for a slot, and who of them is next. Reads requests; knows no pages, no slots, no clock.

In this order:

1. Promises, the earliest due first, once they have no time left to lose (`hurry`: the caller has the clock). Until
   then they stand in the ranks like everybody else.
2. Ranks, most urgent first. After `patience` admissions that passed a rank over, that rank is next, and who then
   goes is of the highest rank until it ends: nobody waits for ever, and nobody takes back what it waited for.
3. Within a rank, who has been admitted before (sent back, woken or made to give way), the latest of them first:
   victims are chosen youngest first, so that is the order of arrival.
4. Then owners by what they have had of the server (`Shares`), and each owner's requests in order of arrival; those
   with a promise before those without.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, ValuesView

from headrace.runtime.claim import Rank
from headrace.runtime.request import Req
from headrace.runtime.shares import Shares

PATIENCE = 16


class Line(Mapping[int, Req]):
    """The waiting requests by id, in order of joining. `promised`: those whose first token must come in time."""

    def __init__(self, shares: Shares, patience: int = PATIENCE) -> None:
        assert patience >= 1
        self.shares = shares
        self.patience = patience
        self.promised: dict[int, Req] = {}
        self._all: dict[int, Req] = {}
        self._back: tuple[OrderedDict[int, Req], ...] = tuple(OrderedDict() for _ in Rank)
        self._owners: tuple[dict[str, dict[int, Req]], ...] = tuple({} for _ in Rank)
        self._passed = [0] * len(Rank)

    # -- a mapping ---------------------------------------------------------------------------------------------

    def __getitem__(self, req_id: int) -> Req:
        return self._all[req_id]

    def __iter__(self) -> Iterator[int]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, req_id: object) -> bool:
        return req_id in self._all

    def __reversed__(self) -> Iterator[int]:
        return reversed(self._all)

    def in_order(self) -> Iterator[int]:
        """Ids as they will go if nobody else comes, about: owners of a rank one by one in turn."""
        for rank in Rank:
            yield from self._back[rank]
            owners = [iter(own) for own in self._owners[rank].values()]
            while owners:
                heads = [next(own, None) for own in owners]
                owners = [own for own, head in zip(owners, heads, strict=True) if head is not None]
                yield from (head for head in heads if head is not None)

    def values(self) -> ValuesView[Req]:
        return self._all.values()

    # -- joining and leaving -----------------------------------------------------------------------------------

    def join(self, req: Req) -> None:
        """`req` has arrived: it is the last of its owner and rank."""
        assert req.id not in self._all
        self._all[req.id] = req
        self._owners[req.rank].setdefault(req.claim.owner, {})[req.id] = req
        if dated(req):
            self.promised[req.id] = req

    def rejoin(self, req: Req) -> None:
        """`req` was admitted before, or paused: it is the first of its rank."""
        assert req.id not in self._all
        self._all[req.id] = req
        back = self._back[req.rank]
        back[req.id] = req
        back.move_to_end(req.id, last=False)
        if dated(req):
            self.promised[req.id] = req

    def leave(self, req: Req) -> None:
        """`req` waits no more, if it did."""
        if self._all.pop(req.id, None) is None:
            return
        self.promised.pop(req.id, None)
        if self._back[req.rank].pop(req.id, None) is None:
            owners = self._owners[req.rank]
            del owners[req.claim.owner][req.id]
            if not owners[req.claim.owner]:
                del owners[req.claim.owner]
        if not self._any(req.rank):
            self._passed[req.rank] = 0

    def admit(self, req: Req) -> None:
        """`req`, which `first` named, leaves the line for a slot: those whom it passed over come nearer."""
        rank = req.rank
        if rank and self._overdue(rank) and self.above(rank):
            self.leave(req)
            req.rank = Rank.INTERACTIVE
        else:
            self.leave(req)
        self._passed[rank] = 0
        for lower in range(rank + 1, len(Rank)):
            if self._any(lower):
                self._passed[lower] += 1

    # -- the order ---------------------------------------------------------------------------------------------

    def first(self, hurry: bool, running: Iterable[Req] = ()) -> Req | None:
        """Who is next. hurry: the promises have no time to lose. running: who has a slot now; what they were given
        counts as their owners' share."""
        if hurry and self.promised:
            return min(self.promised.values(), key=_due)
        for rank in reversed(Rank):
            if rank and self._overdue(rank):
                return self._first_of(rank, running)
        for rank in Rank:
            if self._any(rank):
                return self._first_of(rank, running)
        return None

    def above(self, rank: int) -> int:
        """How many wait whose rank is more urgent than `rank`."""
        waiting = 0
        for higher in range(rank):
            waiting += len(self._back[higher]) + sum(map(len, self._owners[higher].values()))
        return waiting

    def _first_of(self, rank: Rank, running: Iterable[Req]) -> Req:
        if back := self._back[rank]:
            return next(iter(back.values()))
        owners = self._owners[rank]
        if len(owners) == 1:
            (own,) = owners.values()
        else:
            own = owners[self.shares.least(owners, running)]
        if self.promised:
            promised = [req for req in own.values() if dated(req)]
            if promised:
                return min(promised, key=_due)
        return next(iter(own.values()))

    def _overdue(self, rank: int) -> bool:
        return self._passed[rank] >= self.patience

    def _any(self, rank: int) -> bool:
        return bool(self._back[rank] or self._owners[rank])

    def check(self) -> None:
        """Raise AssertionError if the parts do not add up to the whole."""
        seen: set[int] = set()
        for rank in Rank:
            parts = (self._back[rank], *self._owners[rank].values())
            assert all(self._owners[rank].values()), "an owner without requests is kept"
            assert self._any(rank) or not self._passed[rank]
            for part in parts:
                for req_id, req in part.items():
                    assert req.rank is rank and req_id not in seen and self._all[req_id] is req
                    seen.add(req_id)
        assert seen == set(self._all)
        assert set(self.promised) == {i for i, req in self._all.items() if dated(req)}


def dated(req: Req) -> bool:
    """Its first token was promised for a time."""
    return req.promise is not None and req.promise.dated


def _due(req: Req) -> tuple[float, int]:
    assert req.promise is not None
    return req.promise.due, req.id


def urgency(req: Req, hurry: bool) -> tuple[int, float]:
    """Who of those who read their prompts goes before whom: the smaller one."""
    if hurry and req.promise is not None and req.promise.dated:
        return -1, req.promise.due
    return req.rank, 0.0


def slack(reqs: Iterable[Req], now: float) -> float:
    """Seconds for which the work for all promises among `reqs` could still be put off; infinite without any."""
    spare, work = float("inf"), 0.0
    for req in sorted([req for req in reqs if req.promise is not None], key=_due):
        assert req.promise is not None
        work += req.promise.left(len(req.tokens) - req.computed_len)
        spare = min(spare, req.promise.due - now - work)
    return spare
