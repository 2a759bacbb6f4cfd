"""headrace's scheduler and engine, and transformers, generating from the same prompts in turns."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from headrace.bench.machine import Neighbours, spread
from headrace.bench.peer import Run
from headrace.bench.sweep import SteppedEngine, waiter
from headrace.runtime.plan import StepPlan, StepResult
from headrace.runtime.request import Req, SamplingParams
from headrace.runtime.scheduler import Scheduler


def make_prompts(streams: int, context: int, vocab: int, seed: int) -> list[list[int]]:
    """Prompts of about `context` tokens; several ones differ in length by up to a quarter."""
    rng = random.Random(seed)
    spread = [0] if streams == 1 else [round((i / (streams - 1) - 0.5) * context / 2) for i in range(streams)]
    return [[rng.randrange(vocab) for _ in range(max(1, context + delta))] for delta in spread]


def in_quiet(
    cell: Callable[[], Run], ours: Sequence[int], patience: float, allowed: float = 0.1
) -> tuple[Run, float]:
    """Run `cell` until the others kept less than `allowed` CPUs busy, for at most `patience` seconds; the quietest
    run, and the patience that is left."""
    begin = time.perf_counter()
    best: Run | None = None
    neighbours = Neighbours(ours)
    while best is None or (best.elsewhere > allowed and time.perf_counter() - begin < patience):
        if patience:
            time.sleep(0.5)
            if neighbours.look() > allowed and time.perf_counter() - begin < patience:
                continue
        neighbours.look()
        run = cell()
        run.elsewhere = neighbours.look()
        if best is None or run.elsewhere < best.elsewhere:
            best = run
    return best, max(0.0, patience - (time.perf_counter() - begin))


def run_headrace(engine: SteppedEngine, prompts: list[list[int]], count: int) -> Run:
    """All prompts at once through the real scheduler, launching the next step before the last one is retired."""
    scheduler = Scheduler(
        engine.page_count, engine.page_size, engine.max_running, engine.chunk_tokens, prefix_cache=False
    )
    params = SamplingParams(temperature=0.0)
    begin = time.perf_counter()
    for number, prompt in enumerate(prompts):
        scheduler.add(Req(number, "", list(prompt), len(prompt), len(prompt) + count, params))
    flight: tuple[StepPlan, Future[StepResult]] | None = None
    stamps: list[tuple[float, bool]] = []
    tokens = 0
    wait = waiter(engine)
    host: list[float] = []
    while True:
        start = time.perf_counter()
        plan = scheduler.plan()
        launched = None if plan is None else (plan, engine.launch(plan))
        spent = time.perf_counter() - start
        if flight is not None:
            result = wait(flight[1])
            start = time.perf_counter()
            events = scheduler.retire(flight[0], result)
            host.append(spent + time.perf_counter() - start)
            tokens += sum(event.token is not None for event in events)
            steady = len(flight[0].decode) == len(prompts) and not flight[0].prefill
            stamps.append((time.perf_counter(), steady))
        flight = launched
        if flight is None and scheduler.idle:
            break
    wall = time.perf_counter() - begin
    assert tokens == count * len(prompts), "every stream got all its tokens"
    gaps = [
        stamps[i][0] - stamps[i - 1][0] for i in range(1, len(stamps)) if stamps[i][1] and stamps[i - 1][1]
    ]
    run = Run(wall, gaps, tokens, len(prompts))
    run.host = host
    return run


def summary(runs: list[Run], streams: int) -> dict[str, Any]:
    """Median over rounds, and the extremes. host_us: what the scheduler and the launch cost the host per step."""
    steps = [run.step * 1e3 for run in runs]
    host = [seconds for run in runs for seconds in run.host]
    _, usual, late = spread(host, 1e6) if host else (0.0, 0.0, 0.0)
    return {
        "streams": streams,
        "step_ms": round(statistics.median(steps), 2),
        "step_ms_best": round(min(steps), 2),
        "step_ms_worst": round(max(steps), 2),
        "decode_tokens_per_s": round(statistics.median(run.decode_rate for run in runs), 1),
        "decode_tokens_per_s_best": round(max(run.decode_rate for run in runs), 1),
        "whole_tokens_per_s": round(statistics.median(run.whole_rate for run in runs), 1),
        "rounds": len(runs),
        **({"host_us_p50": round(usual, 1), "host_us_p99": round(late, 1)} if host else {}),
        "cpus_busy_elsewhere": [round(run.elsewhere, 2) for run in runs],
    }


def ratios(cells: dict[str, dict[str, Any]], streams: list[int]) -> dict[str, float]:
    """What the targets are about. Against transformers at N streams counts its better way: one padded batch, or
    one after the other (which has the rate of one stream)."""
    found: dict[str, float] = {}
    for metric in ("decode_tokens_per_s", "whole_tokens_per_s"):
        one = cells.get("headrace_1", {}).get(metric)
        for count in streams:
            own = cells[f"headrace_{count}"][metric]
            if one and count > 1:
                found[f"{metric}: headrace {count} over 1"] = round(own / one, 2)
            theirs = [
                cells[name][metric] for name in ("transformers_1", f"transformers_{count}") if name in cells
            ]
            if theirs:
                found[f"{metric}: headrace over transformers at {count}"] = round(own / max(theirs), 2)
    return found
