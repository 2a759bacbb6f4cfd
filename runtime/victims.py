"""Who gives pages or a slot back when there are not enough. Reads requests, changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from headrace.runtime.claim import Rank
from headrace.runtime.request import Req

Held = Mapping[int, Req]  # one of the scheduler's three containers, by id


def worth(req: Req) -> tuple[int, int]:
    """The larger, the sooner it gives back: promises last, then by rank, and the youngest of a rank first (ids are
    given in order of arrival)."""
    return -1 if req.promise is not None else req.rank, req.id


def victim_of(running: Held, paused: Held, waiting: Held) -> Req | None:
    """Who gives pages back: first those that do not move anyway, and the youngest of the lowest rank.

    The running request of least worth to take is never chosen while anybody else holds a page, and alone it always
    fits (`add` saw to that), so it always advances and nothing can wait for ever. What waits with a promise is
    chosen after those that run without one. While a marked one is still in flight nobody else is marked: its pages
    may be enough."""
    for held in (paused, waiting):
        holders = [req for req in held.values() if _holds(req) and (held is paused or req.promise is None)]
        if holders:
            return max(holders, key=worth)
    if any(map(_goes, running.values())):
        return None
    promised = [req for req in waiting.values() if _holds(req)]
    victim = max(running.values(), key=worth, default=None)
    if promised and (victim is None or victim.promise is not None):
        return max(promised, key=worth)
    return victim


def stuck_holder(head: Req, running: Held, paused: Held, waiting: Held) -> Req | None:
    """When nothing runs, whoever else holds pages without moving makes room for the head of the line."""
    if running:
        return None
    still = (*paused.values(), *waiting.values())
    holders = [req for req in still if req is not head and _holds(req)]
    if not holders and _holds(head):
        return head
    return max(holders, key=worth, default=None)


def lesser_holder(head: Req, running: Held, paused: Held, waiting: Held) -> Req | None:
    """Of those whose rank is below that of the head of the line, who gives its pages up to it. None while the pages
    of a marked one are still to come."""
    if any(map(_goes, running.values())):
        return None
    for held in (paused, waiting, running):
        holders = [
            req for req in held.values() if req.rank > head.rank and req.promise is None and _holds(req)
        ]
        if holders:
            return max(holders, key=worth)
    return None


def makes_way(running: Held, above: Mapping[Rank, int], head: Req) -> list[Req]:
    """No slot is free: who of `running` gives its own up, worst first. above: rank -> how many wait whose rank is
    more urgent. Without such ones, an owner that has more than its share of the slots makes way for the first in
    line, one at a time, if that leaves it no worse off than the other."""
    coming = sum(_goes(req) or req.total_len >= req.max_len for req in running.values())
    chosen: list[Req] = []
    for req in sorted(running.values(), key=worth, reverse=True):
        if req.promise is not None or above[req.rank] <= coming + len(chosen):
            break
        if not _goes(req) and req.total_len < req.max_len:
            chosen.append(req)
    if chosen or coming:
        return chosen
    peers = [req for req in running.values() if req.rank == head.rank and req.promise is None]
    slots = Counter(req.claim.owner for req in running.values())
    wanted = (slots[head.claim.owner] + 1) / head.claim.weight
    rich = [req for req in peers if (slots[req.claim.owner] - 1) / req.claim.weight >= wanted]
    if not rich:
        return []
    return [max(rich, key=lambda req: (slots[req.claim.owner] / req.claim.weight, req.id))]


def _holds(req: Req) -> bool:
    return bool(req.pages) or req.copy_from is not None


def _goes(req: Req) -> bool:
    """Its slot or its pages are on their way back."""
    return req.retracting or req.pausing or req.yielding or req.finish is not None
