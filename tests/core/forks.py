"""Forks in the simulation: of the living and of the ended, several at once, pruned and promoted."""

from __future__ import annotations

import random
from typing import Any

FAULTS = ("branch", "prune", "promote", "revive")


def draw(seed: int, found: Any) -> None:
    """The rates of these faults, from dice of their own: seeds without them live as they did before there were
    any."""
    dice = random.Random(f"forks of {seed}")
    for fault in FAULTS if dice.random() < 0.4 else ():
        if dice.random() < 0.8:
            found.faults[fault] = dice.choice((0.05, 0.1, 0.3, 0.5))


def _place(world: Any, parent: Any, least: int = 0) -> tuple[int, list[int]] | None:
    """How many of the parent's tokens a fork keeps, and all that it begins with. least: of those it keeps."""
    rng, found = world.rng, world.drawn
    length = len(parent.tokens)
    edge = rng.randint(0, length // found.page_size) * found.page_size
    at = rng.choice((length, length, rng.randint(0, length), edge, parent.landed_len, parent.prompt_len))
    at = max(least, min(at, length))
    extra = rng.choice((0, 0, 1, rng.randint(1, 6), max(0, found.capacity - at - rng.randint(0, 2))))
    if at + extra == 0:
        extra = 1
    tokens = parent.tokens[:at] + [rng.randrange(found.width) for _ in range(extra)]
    return None if len(tokens) > 200 else (at, tokens)


def _full(world: Any) -> bool:
    return len(world.stories) >= 3 * world.drawn.requests


def do_fork(world: Any) -> None:
    """One fork of a request that lives."""
    parent = world._pick(world.scheduler.reqs())
    if parent is None or _full(world):
        return
    if (place := _place(world, parent)) is not None:
        at, tokens = place
        world._note("fork", parent.id, at, len(tokens) - at, world._state(parent))
        world._add(parent.salt, tokens, world.core.ForkPoint(parent, at))


def do_revive(world: Any) -> None:
    """A fork of a request that has ended: what it left is shared, as far as it is still there."""
    ended = world.core.Phase.DONE
    dead = [story.req for story in world.stories.values() if story.req.phase is ended]
    if not dead or _full(world):
        return
    kept = [req for req in dead if world.scheduler.remnants.find(req.id) is not None]
    near = bool(kept) and world.rng.random() < 0.8
    parent = world.rng.choice(kept if near else dead)
    least = world.scheduler.remnants.find(parent.id)[1] - 1 if near else 0
    if (place := _place(world, parent, least)) is None:
        return
    at, tokens = place
    scheduler = world.scheduler
    left = set(scheduler.remnants.pages())
    world._note("revive", parent.id, at, len(tokens) - at)
    world._add(parent.salt, tokens, world.core.ForkPoint(parent, at))
    child = world.stories[len(world.stories)]
    if child.refused is not None:
        return
    world.seen["fork: of an ended parent"] += 1
    if child.req.copy_from is not None:
        kind = "what an ended parent left" if child.req.copy_from in left else "part of a cached page"
        world.seen[f"fork: {kind}"] += 1
    elif child.req.pages:
        world.seen["fork: whole pages of an ended parent"] += 1


def do_branch(world: Any) -> None:
    """Several forks of one request at one place, in one moment."""
    rng = world.rng
    parent = world._pick(req for req in world.scheduler.reqs() if req.output_len > 0)
    if parent is None or _full(world):
        return
    at = rng.randint(parent.prompt_len, len(parent.tokens))
    if at > 200:
        return
    known = world.scheduler.pool.used_count
    born = []
    for _ in range(rng.randint(2, 4)):
        world._add(parent.salt, parent.tokens[:at], world.core.ForkPoint(parent, at))
        story = world.stories[len(world.stories)]
        if story.refused is None:
            born.append(story)
    assert world.scheduler.pool.used_count == known, "a branch that waits holds no page of its own"
    world._note("branch", parent.id, at, len(born))
    if len(born) >= 2:
        world.groups.append([world.stories[parent.id], *born])
        world.seen["branches of one answer"] += 1
        whole = (at - 1) // world.drawn.page_size * world.drawn.page_size
        if parent.landed_len >= at - 1 and parent.pages:
            for story in born:
                assert story.req.computed_len == whole, "all whole pages are shared"
            world.seen["branches share all that they begin with"] += whole > 0
        if any(parent.id == story.req.id for group in world.groups[:-1] for story in group[1:]):
            world.seen["branches of a branch"] += 1


def _living(group: list[Any]) -> list[Any]:
    return [story for story in group if story.req.finish is None]


def _cut(world: Any, story: Any) -> None:
    """One branch less: what it alone held is free when the steps in flight have landed, and nobody else moves."""
    req, pool = story.req, world.scheduler.pool
    world.seen["pruned with a step in flight" if req.inflight else "pruned at rest"] += 1
    world.cuts.append((req, [page for page in req.pages if pool.refs(page) == 1]))
    story.cancelled = True
    story.ends += 1
    story.end = world.core.FinishReason.CANCELLED
    world.scheduler.cancel(req)
    world._disturbed()


def check_cuts(world: Any) -> None:
    """Called before anything is planned after a landing: then nobody has been granted what became free."""
    ready = [cut for cut in world.cuts if not cut[0].inflight]
    if not ready:
        return
    world.cuts = [cut for cut in world.cuts if cut[0].inflight]
    scheduler = world.scheduler
    # What its last step filled may be cached, and it may have been forked between its end and that landing.
    found = {*scheduler.remnants.pages(), *scheduler._sources, *scheduler.tree._by_page}
    found.update(page for req in scheduler.reqs() for page in req.pages)
    for req, alone in ready:
        assert req.phase is world.core.Phase.DONE
        for page in alone:
            assert page in found or not scheduler.pool.refs(page), "a page of nobody is not free"
        world.seen["pruned pages were free at once"] += any(page not in found for page in alone)


def do_prune(world: Any) -> None:
    groups = [group for group in world.groups if len(_living(group)) >= 2]
    if groups:
        story = world.rng.choice(_living(world.rng.choice(groups)))
        world._note("prune", story.req.id)
        _cut(world, story)


def do_promote(world: Any) -> None:
    """One branch goes on, all others of its answer are given up."""
    groups = [group for group in world.groups if len(_living(group)) >= 2]
    if not groups:
        return
    group = world.rng.choice(groups)
    chosen = world.rng.choice(_living(group))
    world._note("promote", chosen.req.id)
    world.seen["promoted while others ran"] += 1
    world.seen["promoted, and the first answer given up"] += chosen is not group[0]
    for story in _living(group):
        if story is not chosen:
            _cut(world, story)


def note_fork(world: Any, story: Any) -> None:
    req, parent, seen = story.req, story.parent.req, world.seen
    Phase = world.core.Phase
    if req.copy_from is not None:
        seen["fork: part page"] += 1
    elif req.pages:
        seen["fork: page edge"] += 1
    else:
        seen["fork: nothing to share"] += 1
    if tuple(req.tokens) == tuple(parent.tokens):
        seen["fork: whole parent"] += 1
    if story.parent.parent is not None:
        seen["fork: of a fork"] += 1
    if parent.phase is Phase.DONE:
        return
    if parent.finish is not None:
        seen["fork: of an ending parent"] += 1
    elif parent.retracting:
        seen["fork: of a retracting parent"] += 1
    elif parent.phase is Phase.WAITING:
        seen["fork: of a waiting parent"] += 1
    elif parent.phase is Phase.PAUSED:
        seen["fork: of a paused parent"] += 1
