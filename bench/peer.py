"""transformers as the peer of the step bench, in a process of its own.

Two thread teams in one process would slow each other down: OpenMP waits less eagerly when it counts more threads
than cores.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# What libgomp takes where nobody sets anything. headrace's engine sets less for itself; transformers gets OpenMP as
# its users have it. Named, not unset: the new process imports the main module again, which may set it anew.
OPENMP_SPINS = "300000"


class Run:
    """What one side did with one set of prompts. Times in seconds; `elsewhere`: CPUs that others kept busy; `host`:
    what planning, launching and retiring cost in each step, where that is known."""

    def __init__(self, wall: float, steps: Sequence[float], tokens: int, streams: int) -> None:
        self.wall = wall
        self.elsewhere = 0.0
        self.host: list[float] = []
        self.step = statistics.median(steps)
        self.whole_rate = tokens / wall
        self.decode_rate = streams / self.step


class Peer:
    """The other process. `run` blocks until it is done; while it waits for work it computes nothing."""

    def __init__(self, folder: Path, dtype: str, threads: int, device: str = "cpu") -> None:
        fresh = multiprocessing.get_context("spawn")
        self.link, other = fresh.Pipe()
        given = (other, str(folder), dtype, threads, device)
        self.process = fresh.Process(target=serve, args=given, daemon=True)
        spins = os.environ.get("GOMP_SPINCOUNT")
        os.environ["GOMP_SPINCOUNT"] = OPENMP_SPINS
        try:
            self.process.start()
        finally:
            if spins is None:
                del os.environ["GOMP_SPINCOUNT"]
            else:
                os.environ["GOMP_SPINCOUNT"] = spins
        other.close()
        assert self.link.recv() == "ready"
        assert self.process.pid is not None
        self.pid = self.process.pid

    def run(self, prompts: list[list[int]], count: int) -> Run:
        """`count` greedy tokens for every prompt, as one batch padded on the left."""
        self.link.send((prompts, count))
        wall, gaps = self.link.recv()
        return Run(wall, gaps, count * len(prompts), len(prompts))

    def close(self) -> None:
        self.link.send(None)
        self.process.join()


def serve(link: Any, folder: str, dtype: str, threads: int, device: str) -> None:
    """The main function of the other process."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval().to(device)
    link.send("ready")
    while (work := link.recv()) is not None:
        link.send(generate(torch, model, *work))


def generate(torch: Any, model: Any, prompts: list[list[int]], count: int) -> tuple[float, list[float]]:
    """Seconds for everything, and the gaps between the steps after the first."""
    longest = max(len(prompt) for prompt in prompts)
    padding = [longest - len(prompt) for prompt in prompts]
    ids = torch.tensor([[0] * pad + prompt for pad, prompt in zip(padding, prompts, strict=True)])
    mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding])
    ids, mask = ids.to(model.device), mask.to(model.device)
    stamps: list[float] = []

    # A streamer would be refused for batches; a stopping criterion sees every step, and here never stops.
    def stamp(input_ids: Any, scores: Any, **rest: Any) -> Any:
        if input_ids.is_cuda:
            torch.cuda.synchronize()
        stamps.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    begin = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            min_new_tokens=count,
            max_new_tokens=count,
            pad_token_id=0,
            eos_token_id=None,
            stopping_criteria=[stamp],
        )
    wall = time.perf_counter() - begin
    assert out.shape == (len(prompts), longest + count)
    return wall, [after - before for before, after in itertools.pairwise(stamps)]
