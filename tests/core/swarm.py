"""What a seed draws before anything happens, and what many seeds together must have met."""

from __future__ import annotations

import random
import sys
from collections import Counter
from dataclasses import dataclass, field

classes = sys.modules["core_simulation"].load("classes")
pinning = sys.modules["core_simulation"].load("pinning")

FAULTS = (
    "cancel", "pause", "resume", "fork", "change", "budget", "spoil", "flush", "evict", "retract", "echo",
)  # fmt: skip
# What 1,000 seeds must have shown at least 10 times each; a run that never met a state says nothing about it.
GATES = (
    "retraction under pressure",
    "retraction of a waiting request",
    "retraction of a paused request",
    "retraction of a decode request",
    "retraction of a prefill request",
    "eviction under pressure",
    "partial prefix hit",
    "hit of all but the last page of a prompt that ends at a page edge",
    "hit that ends at a page edge, one token before the end",
    "another tenant has more of this prompt cached",
    "abort: queued",
    "abort: queued with pages",
    "abort: queued with a part page to copy",
    "abort: prompt chunk in flight",
    "abort: between prompt chunks",
    "abort: decoding, nothing in flight",
    "abort: one step in flight",
    "abort: two steps in flight",
    "abort: last token in flight",
    "abort: pausing",
    "abort: retracting",
    "abort: paused with pages",
    "abort: paused without pages",
    "abort: after its end",
    "refused: context_length_exceeded",
    "refused: server_is_overloaded",
    "longest request that fits",
    "pause: decoding",
    "pause: prompt",
    "pause: queued",
    "pause taken back before it took place",
    "resumed with its pages",
    "resumed after its pages were taken",
    "change: queued",
    "change: prompt chunk in flight",
    "change: between prompt chunks",
    "change: decoding, nothing in flight",
    "change: one step in flight",
    "change: two steps in flight",
    "change: last token in flight",
    "change: pausing",
    "change: retracting",
    "change: paused with pages",
    "change of a change",
    "change: penalties on",
    "change: a shorter answer",
    "change: a longer answer",
    "ended before its change",
    "fork: part page",
    "fork: page edge",
    "fork: nothing to share",
    "fork: whole parent",
    "fork: of a fork",
    "fork: of a waiting parent",
    "fork: of a paused parent",
    "fork: of an ending parent",
    "fork: of a retracting parent",
    "fork admitted after its parent ended",
    "fork: of an ended parent",
    "fork: what an ended parent left",
    "fork: part of a cached page",
    "fork: whole pages of an ended parent",
    "what was left for forks gave way",
    "branches of one answer",
    "branches share all that they begin with",
    "branches of a branch",
    "pruned with a step in flight",
    "pruned at rest",
    "pruned pages were free at once",
    "promoted while others ran",
    "promoted, and the first answer given up",
    "parent writes while its page is copied",
    "chunk split over three steps",
    "two prompts in one step",
    "decode and prompt in one step",
    "step landed after its request had ended",
    "non-finite row",
    "non-finite row of a chunk",
    "non-finite row of an ended request",
    "ended by stop",
    "ended by length",
    "minimum length held back a stop",
    "plan with a budget of zero",
    "flush with pages cached",
    "no page left and no cache to evict",
    *classes.GATES,
    *pinning.GATES,
)


@dataclass
class Draw:
    """What a seed draws before anything happens."""

    page_size: int
    pages: int
    slots: int
    chunk: int
    ahead: int
    depth: int
    cache: bool
    waiting_limit: int
    width: int
    tenants: int
    requests: int
    gap: int
    step: int
    faults: dict[str, float] = field(default_factory=dict)

    @property
    def capacity(self) -> int:
        return self.pages * self.page_size


def draw(rng: random.Random) -> Draw:
    """Sizes and fault rates. Tiny pools mostly: faults live at "full"."""
    size = rng.choice((1, 2, 2, 4, 4, 16, 32))
    kind = rng.random()
    if kind < 0.15:
        pages = rng.randint(1, 5)
    elif kind < 0.75:
        pages = rng.randint(8, 16)
    elif kind < 0.97:
        pages = rng.randint(17, 64)
    else:
        pages = rng.randint(65, 512)
    found = Draw(
        page_size=size,
        pages=pages,
        slots=rng.choice((1, 2, 3, 4, 6, 8)),
        chunk=rng.choice((1, 2, max(1, size - 1), size, size + 1, 2 * size, 7, 16, 64, 64)),
        ahead=rng.choice((0, 0, 1, size, 64)),
        depth=rng.choice((1, 1, 2, 2, 2, 2, 3)),
        cache=rng.random() < 0.85,
        waiting_limit=rng.choice((1, 2, 4, 1024, 1024, 1024)),
        width=rng.choice((3, 8, 50)),
        tenants=rng.choice((1, 1, 2, 3)),
        requests=rng.randint(4, 12),
        gap=rng.choice((0, 5, 20, 60)),
        step=rng.choice((1, 10, 30)),
    )
    for fault in FAULTS:
        if rng.random() < 0.5:
            found.faults[fault] = rng.choice((0.02, 0.05, 0.1, 0.3))
    return found


def missed_gates(total: Counter[str], seeds: int) -> list[str]:
    """Which states were met too rarely: 10 times in 1,000 seeds, and in the same proportion in fewer."""
    least = max(1, 10 * seeds // 1000)
    return [f"{name}: {total[name]} of {least}" for name in GATES if total[name] < least]
