"""Which kinds of forks the simulation has met."""

from __future__ import annotations

from typing import Any


def note_fork(world: Any, story: Any) -> None:
    """What kind of fork this is that was just added."""
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
    if parent.finish is not None:
        seen["fork: of an ending parent"] += 1
    elif parent.retracting:
        seen["fork: of a retracting parent"] += 1
    elif parent.phase is Phase.WAITING:
        seen["fork: of a waiting parent"] += 1
    elif parent.phase is Phase.PAUSED:
        seen["fork: of a paused parent"] += 1
