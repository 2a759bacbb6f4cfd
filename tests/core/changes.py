"""Parameters that change while a request lives, in the simulation: the fault, and what a lone run says then."""

from __future__ import annotations

import dataclasses
from typing import Any


def do_change(world: Any) -> None:
    """Other parameters from here on, and sometimes another length."""
    rng, seen = world.rng, world.seen
    req = world._pick(req for req in world.scheduler.reqs() if req.finish is None)
    if req is None:
        return
    story, state = world.stories[req.id], world._state(req)
    base = req.params if req.changing is None else req.changing.params
    penalty = rng.choice((base.presence_penalty, 0.0, 0.5))
    params = dataclasses.replace(base, seed=rng.randrange(3), presence_penalty=penalty)
    max_len = req.max_len if req.changing is None else req.changing.max_len
    if rng.random() < 0.5:
        longest = min(world.scheduler.max_tokens, len(req.tokens) + 60)
        max_len = rng.randint(req.prompt_len + 1, max(req.prompt_len + 1, longest))
    seen[f"change: {state}"] += 1
    seen["change of a change"] += req.changing is not None
    seen["change: penalties on"] += params.needs_history and not req.params.needs_history
    seen["change: a shorter answer"] += max_len < req.max_len
    seen["change: a longer answer"] += max_len > req.max_len
    world._note("change", req.id, params.seed, penalty, max_len, state)
    known, inflight = len(req.tokens), req.inflight
    change = world.core.Change(params, max_len)
    if story.changes and story.changes[-1].settled is None:
        story.changes.pop()
    story.changes.append(world.watch.Changing(change, known, known + inflight))
    world.scheduler.change(req, change)
    assert req.inflight == inflight
    world._disturbed()


def alone(world: Any, story: Any) -> list[int]:
    """What this request says when nobody else is there and its parameters change at the same tokens."""
    req, answer = story.req, []
    turns = [change for change in story.changes if change.settled is not None]
    world.seen["ended before its change"] += len(story.changes) - len(turns)
    ends = [change.settled for change in turns] + [req.max_len]
    params = story.params
    for at, end in enumerate(ends):
        tokens = story.prompt + tuple(answer)
        answer += world.watch.cells.alone(tokens, end - len(tokens), params, world.drawn.width, len(answer))
        if len(story.prompt) + len(answer) < end:
            break  # it stopped by itself
        if at < len(turns):
            params = turns[at].change.params
    return answer
