"""Who gives pages back when there are not enough. Reads requests, changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter

from headrace.runtime.request import Req

Held = Mapping[int, Req]  # one of the scheduler's three containers, by id

_age = attrgetter("id")  # ids are given in order of arrival: the largest is the youngest


def victim_of(running: Held, paused: Held, waiting: Held) -> Req | None:
    """Who gives pages back: first those that do not move anyway, and the youngest of a kind.

    The oldest running request is never chosen while anybody else holds a page, and alone it always fits
    (`add` saw to that), so the oldest always advances and nothing can wait for ever. While a marked one is
    still in flight nobody else is marked: its pages may be enough."""
    for held in (paused, waiting):
        holders = [req for req in held.values() if req.pages or req.copy_from is not None]
        if holders:
            return max(holders, key=_age)
    if any(req.retracting or req.pausing or req.finish is not None for req in running.values()):
        return None
    return max(running.values(), key=_age, default=None)


def stuck_holder(head: Req, running: Held, paused: Held, waiting: Held) -> Req | None:
    """When nothing runs, whoever else holds pages without moving makes room for the head of the line."""
    if running:
        return None
    still = (*paused.values(), *waiting.values())
    holders = [req for req in still if req is not head and (req.pages or req.copy_from is not None)]
    if not holders and (head.pages or head.copy_from is not None):
        return head
    return max(holders, key=_age, default=None)
