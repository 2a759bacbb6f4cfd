"""Facts about a running loop for metrics and for who asks what the engine has room for. Reads, changes nothing."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from headrace.runtime.claim import Rank
from headrace.runtime.scheduler import Scheduler

if TYPE_CHECKING:
    from headrace.runtime.loop import StepLoop


def sizes_of(scheduler: Scheduler) -> dict[str, int]:
    """What the engine has room for, in the names of SGLang."""
    return {
        "page_size": scheduler.page_size,
        "max_total_num_tokens": scheduler.pool.count * scheduler.page_size,
        "max_running_requests": scheduler.slots.count,
        "max_queued_requests": scheduler.waiting_limit,
        "chunked_prefill_size": scheduler.chunk_tokens,
    }


def stats_of(loop: StepLoop) -> dict[str, float]:
    """Counters since the start and gauges of now."""
    scheduler = loop.scheduler
    counters = scheduler.counters
    return {
        "steps": counters.steps,
        "graph_replays": loop.engine.replays,
        "eager_steps": counters.steps - loop.engine.replays,
        "prefill_tokens_computed": counters.prefill_tokens_computed,
        "decode_tokens_computed": counters.decode_tokens_computed,
        "cached_tokens": counters.cached_tokens,
        "admissions": counters.admissions,
        "retractions": counters.retractions,
        "slots_yielded": counters.yields,
        "evicted_pages": counters.evicted_pages,
        "copied_pages": counters.copied_pages,
        "images_encoded": scheduler.gallery.encoded,
        "images_reused": scheduler.gallery.reused,
        "reader_pauses": loop.holds,
        "waiting": len(scheduler.waiting),
        "running": len(scheduler.running),
        "paused": len(scheduler.paused),
        "kv_pages_pinned": scheduler.pins.pages,
        "kv_pages_total": scheduler.pool.count,
        "kv_pages_in_use": scheduler.pages_in_use,
        "kv_pages_cached": scheduler.tree.idle_pages + len(scheduler.remnants),
    }


def class_stats_of(loop: StepLoop) -> dict[str, dict[str, float]]:
    """Name → class → number."""
    tally = loop.tally
    waiting = Counter(req.rank for req in loop.scheduler.waiting.values())
    found = {
        "queue_length": waiting,
        "early_refusals": tally.refused,
        "targets_met": tally.met,
        "targets_missed": tally.missed,
    }
    return {name: {rank.name.lower(): float(counts[rank]) for rank in Rank} for name, counts in found.items()}
