"""What is known of requests before a step: what the next plan will find, what a slot's owner is, and becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from headrace.runtime.plan import SlotGrant
from headrace.runtime.request import Change, Phase, Req


def prospect_of(
    running: Mapping[int, Req], waiting: Mapping[int, Req], plannable: Callable[[], list[Req]]
) -> tuple[int, int, int] | None:
    """What the next plan will find: its decode rows, how far the first prompt in line has come, and how many prompt
    tokens wait in all. None if no prompt does."""
    prompts = [req for req in running.values() if req.phase is Phase.PREFILL]
    if not prompts and not waiting:
        return None
    decode = sum([req.phase is Phase.DECODE for req in plannable()])
    first = prompts[0] if prompts else next(iter(waiting.values()))
    queued = sum(len(req.tokens) - req.computed_len for req in (*prompts, *waiting.values()))
    return decode, first.computed_len, queued


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
