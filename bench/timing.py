"""Seconds of one call on a GPU, measured so that neither launches nor a warm cache flatter it."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

MOST_CALLS = 200
REPLAYS = 25


def replayed(call: Callable[[int], object], sets: int, device: torch.device) -> float:
    """Median over replays of one CUDA graph that calls `call` again and again, rotating over the input sets.

    A node of a graph starts when the one before has ended, so this is the time of the call inside a captured step:
    its fixed cost counts, the host's launch does not. Raises what the call raises under capture.
    """
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        for number in range(sets):
            call(number)  # compiles, loads and allocates what capture must find ready
        stream.synchronize()
        once = _between(stream, lambda: call(0), 3)
        # About two milliseconds of work, each set equally often.
        turns = max(1, min(MOST_CALLS, int(2e-3 / max(once, 1e-7))) // sets)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(turns):
                for number in range(sets):
                    call(number)
        graph.replay()
        stream.synchronize()
        found = [_between(stream, graph.replay, 1) for _ in range(REPLAYS)]
    return statistics.median(found) / (turns * sets)


def launched(call: Callable[[int], object], sets: int, device: torch.device) -> float:
    """Median seconds of one eager call between two events, launches included: for what cannot be captured."""
    stream = torch.cuda.current_stream(device)
    call(0)
    once = _between(stream, lambda: call(0), 1)
    rounds = max(3, min(REPLAYS, int(0.3 / max(once, 1e-6))))
    return statistics.median(_between(stream, lambda n=n: call(n % sets), 1) for n in range(rounds))  # type: ignore[misc]


def _between(stream: torch.cuda.Stream, work: Callable[[], object], times: int) -> float:
    """Seconds of one `work` between two events on `stream`."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record(stream)
    for _ in range(times):
        work()
    end.record(stream)
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / times
