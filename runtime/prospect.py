"""What is known of requests before a step: what the next plan will find, what a slot's owner is, and becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from headrace.runtime.claim import Rank
from headrace.runtime.plan import SlotGrant
from headrace.runtime.request import Change, Phase, Req


@dataclass(frozen=True, slots=True)
class Prospect:
    """What the next plan will find: how many decode rows (0 if all are of the lowest rank: nobody reads those as
    they come), how far the first prompt in line has come, how many prompt tokens wait in all, and the seconds
    between two tokens that the most demanding of the decode rows was promised (None: none was)."""

    rows: int
    start: int
    queued: int
    itl: float | None = None


def prospect_of(
    running: Mapping[int, Req],
    waiting: Mapping[int, Req],
    head: Req | None,
    plannable: Callable[[], list[Req]],
) -> Prospect | None:
    """None if no prompt waits. head: the first in line."""
    prompts = [req for req in running.values() if req.phase is Phase.PREFILL]
    if not prompts and head is None:
        return None
    decoding = [req for req in plannable() if req.phase is Phase.DECODE]
    read = sum([req.rank is not Rank.BATCH for req in decoding])
    first = prompts[0] if prompts else head
    assert first is not None
    queued = sum(len(req.tokens) - req.computed_len for req in (*prompts, *waiting.values()))
    promises = [req.promise for req in decoding if req.promise is not None]
    promised = [promise.itl for promise in promises if promise.itl is not None]
    rows = len(decoding) if read or promised else 0
    return Prospect(rows, first.computed_len, queued, min(promised, default=None))


def grant_of(req: Req) -> SlotGrant:
    """What the device must know of `req` in its slot. Nothing of it is in flight: all its tokens are known."""
    assert req.slot is not None
    history = tuple(req.tokens) if req.params.needs_history else ()
    pages, guided = tuple(req.pages), req.grammar is not None
    return SlotGrant(req.slot, req.id, req.params, req.prompt_len, pages, history, req.spans, guided)


def become(req: Req, change: Change) -> bool:
    """`req`, of which nothing is in flight, is as `change` says from its next token on. True if its slot must be
    written again: then its last token is fed once more, so that the new parameters choose what follows it."""
    req.changing = None
    req.params = change.params
    req.changed_at = len(req.tokens)
    req.max_len = max(change.max_len, len(req.tokens) + 1)
    if req.slot is not None:
        req.phase = Phase.PREFILL
    return req.slot is not None
