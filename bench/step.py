"""How fast the engine's steps are, without server or sockets, beside transformers on the same machine in one run.

    python -P -m headrace.bench.step --config qwen3-0.6b --streams 1,8 --rounds 3

Writes a random checkpoint of the chosen shape, then lets headrace and transformers (each in a process of its own)
generate greedily from the same prompts in turns. "decode" is the median time between tokens once prompts are in;
"whole" is all tokens over the wall time of everything, prompts included. The last line printed is the JSON that
--out writes.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault(
    "GOMP_SPINCOUNT", "2000"
)  # as the engine sets it, before torch is imported; for both sides

import torch

from headrace.bench.peer import Peer, Run
from headrace.bench.shapes import CONFIGS, write_checkpoint
from headrace.runtime.config import EngineConfig
from headrace.runtime.engine import Engine
from headrace.runtime.plan import StepPlan, StepResult
from headrace.runtime.request import Req, SamplingParams
from headrace.runtime.scheduler import Scheduler


def make_prompts(streams: int, context: int, vocab: int, seed: int) -> list[list[int]]:
    """Prompts of about `context` tokens; several ones differ in length by up to a quarter."""
    rng = random.Random(seed)
    spread = [0] if streams == 1 else [round((i / (streams - 1) - 0.5) * context / 2) for i in range(streams)]
    return [[rng.randrange(vocab) for _ in range(max(1, context + delta))] for delta in spread]


class Neighbours:
    """How many CPUs others kept busy since the last look; 0 where the system does not tell. `ours`: processes."""

    def __init__(self, ours: Sequence[int]) -> None:
        self.ours = ours
        self.look()

    def look(self) -> float:
        now = time.perf_counter()
        try:
            own = sum(self._used(pid) for pid in self.ours)
            counts = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
            busy = sum(counts) - counts[3] - counts[4]
        except (OSError, ValueError, IndexError):
            own = busy = 0
        last = getattr(self, "last", (now - 1.0, own, busy))
        self.last = (now, own, busy)
        return max(0.0, (busy - last[2]) - (own - last[1])) / os.sysconf("SC_CLK_TCK") / (now - last[0])

    @staticmethod
    def _used(pid: int) -> int:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(after_name[11]) + int(after_name[12])  # user and system


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


def run_headrace(engine: Engine, prompts: list[list[int]], count: int) -> Run:
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
    while True:
        plan = scheduler.plan()
        launched = None if plan is None else (plan, engine.launch(plan))
        if flight is not None:
            events = scheduler.retire(flight[0], flight[1].result())
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
    return Run(wall, gaps, tokens, len(prompts))


def facts_of_machine(threads: int) -> dict[str, Any]:
    """Where and with what a result was measured."""
    root = Path(__file__).resolve().parents[1]
    git = shutil.which("git")
    commit = ""
    if git and (root / ".git").exists():
        done = subprocess.run(
            [git, "-C", str(root), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=False,
        )
        commit = done.stdout.strip()
    versions = {name: importlib.metadata.version(name) for name in ("headrace", "torch")}
    if importlib.util.find_spec("transformers") is not None:
        versions["transformers"] = importlib.metadata.version("transformers")
    capabilities = torch.cpu.get_capabilities()
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "git_rev": commit,
        "cpu": capabilities.get("cpu_name", platform.processor()),
        "cores": os.cpu_count(),
        "avx512_bf16": bool(capabilities.get("avx512_bf16")),
        "amx_bf16": bool(capabilities.get("amx_bf16")),
        "threads": threads,
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "omp": {key: value for key, value in os.environ.items() if key.startswith(("OMP_", "GOMP_", "KMP_"))},
        **versions,
    }


def summary(runs: list[Run], streams: int) -> dict[str, Any]:
    """Median over rounds, and the extremes."""
    steps = [run.step * 1e3 for run in runs]
    return {
        "streams": streams,
        "step_ms": round(statistics.median(steps), 2),
        "step_ms_best": round(min(steps), 2),
        "step_ms_worst": round(max(steps), 2),
        "decode_tokens_per_s": round(statistics.median(run.decode_rate for run in runs), 1),
        "decode_tokens_per_s_best": round(max(run.decode_rate for run in runs), 1),
        "whole_tokens_per_s": round(statistics.median(run.whole_rate for run in runs), 1),
        "rounds": len(runs),
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the bench; 0 if it finished. Prints a table, then one line of JSON."""
    parser = argparse.ArgumentParser(prog="headrace bench step", description=__doc__.split("\n")[0])
    parser.add_argument("--config", choices=sorted(CONFIGS), default="qwen3-0.6b", help="shape of the model")
    parser.add_argument("--model", type=Path, help="a model folder to use instead of a random one")
    parser.add_argument("--streams", default="1,8", help="how many at once, comma separated")
    parser.add_argument("--context", type=int, default=112, help="prompt tokens (mean over the streams)")
    parser.add_argument("--tokens", type=int, default=32, help="tokens to generate per stream")
    parser.add_argument("--rounds", type=int, default=3, help="how often each cell is measured, in turns")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--threads", type=int, default=0, help="compute threads (0 = physical cores)")
    parser.add_argument(
        "--patience",
        type=float,
        default=0.0,
        help="seconds to spend on waiting until other processes are quiet",
    )
    parser.add_argument("--alone", action="store_true", help="leave transformers out")
    parser.add_argument("--out", type=Path, help="write the JSON to this file as well")
    args = parser.parse_args(argv)
    streams = [int(text) for text in args.streams.split(",")]
    # This thread's OpenMP team must stay alone: two teams in one process would make each other wait in sleep.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as temporary:
        folder = args.model
        if folder is None:
            folder = Path(temporary) / args.config
            print(f"writing a random {args.config} checkpoint ...", flush=True)
            write_checkpoint(folder, CONFIGS[args.config])
        result = measure(args, folder, streams)
    print_table(result)
    line = json.dumps(result)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(line)
    return 0


def measure(args: argparse.Namespace, folder: Path, streams: list[int]) -> dict[str, Any]:
    """All cells in turns, one discarded round first."""
    started = time.perf_counter()
    room = (args.context * 2 + args.tokens) * max(streams)
    engine = Engine(
        folder,
        EngineConfig(dtype=args.dtype, threads=args.threads, max_running=max(8, *streams), max_context=0),
    )
    engine.warm()
    ready = time.perf_counter() - started
    assert engine.page_count * engine.page_size >= room, "the streams fit the slab"
    peer = None
    if not args.alone:
        if importlib.util.find_spec("transformers") is None:
            print("transformers is not installed: measuring headrace alone")
        else:
            peer = Peer(folder, engine.config.dtype, engine.config.threads)
    ours = [os.getpid(), *([peer.pid] if peer else [])]
    runs: dict[str, list[Run]] = {}
    vocab = engine.embedding_rows
    patience = args.patience
    gc.collect()
    for turn in range(args.rounds + 1):
        for count in streams:
            prompts = make_prompts(count, args.context, vocab, seed=turn)
            sides: dict[str, Callable[[], Run]] = {
                f"headrace_{count}": partial(run_headrace, engine, prompts, args.tokens)
            }
            if peer is not None:
                sides[f"transformers_{count}"] = partial(peer.run, prompts, args.tokens)
            for name, side in sides.items():
                run, patience = in_quiet(side, ours, patience)
                print(
                    f"round {turn} {name}: {run.step * 1e3:.2f} ms/step, {run.whole_rate:.1f} tokens/s, "
                    f"{run.elsewhere:.2f} CPUs busy elsewhere",
                    flush=True,
                )
                if turn > 0:
                    runs.setdefault(name, []).append(run)
    engine.close()
    if peer is not None:
        peer.close()
    cells_out = {name: summary(found, int(name.rpartition("_")[2])) for name, found in runs.items()}
    return {
        "bench": "step",
        "config": args.config if args.model is None else args.model.name,
        "dtype": engine.config.dtype,
        "prompt_tokens": args.context,
        "new_tokens": args.tokens,
        "engine": {
            "chunk_tokens": engine.chunk_tokens,
            "page_size": engine.page_size,
            "start_s": round(ready, 2),
        },
        "machine": facts_of_machine(engine.config.threads),
        "cells": cells_out,
        "ratios": ratios(cells_out, streams),
    }


def print_table(result: dict[str, Any]) -> None:
    print(f"\n{'cell':<18}{'ms/step':>9}{'best':>8}{'worst':>8}{'decode tok/s':>14}{'whole tok/s':>13}")
    for name, cell in result["cells"].items():
        print(
            f"{name:<18}{cell['step_ms']:>9.2f}{cell['step_ms_best']:>8.2f}{cell['step_ms_worst']:>8.2f}"
            f"{cell['decode_tokens_per_s']:>14.1f}{cell['whole_tokens_per_s']:>13.1f}"
        )
    for name, value in result["ratios"].items():
        print(f"{name}: {value:.2f}x")


if __name__ == "__main__":
    sys.exit(main())
