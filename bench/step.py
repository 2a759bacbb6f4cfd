"""How long the engine's steps take by row count and context, without server or sockets, beside their floor.

    headrace bench step                                        a random model in the shape of Qwen3-0.6B
    headrace bench step --shape llama-3.1-8b --rows 1,8,64,256 --contexts 1024,4096
    headrace bench step --model ./Qwen3-0.6B --streams 1,8     and beside transformers in turns, on the same machine

The sweep drives the engine with plans made by hand: the step alone, then the gap that the host leaves when it
launches a step only after the last one landed. `--streams` lets headrace's scheduler and transformers (in a process
of its own) generate greedily from the same prompts in turns: "decode" is the median time between tokens once the
prompts are in; "whole" is all tokens over the wall time of everything, prompts included. The last line printed is
the JSON that --out writes.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the engine sets it, before torch is imported

import torch

from headrace.bench.beside import in_quiet, make_prompts, ratios, run_headrace, summary
from headrace.bench.machine import facts_of_machine, machine_of
from headrace.bench.peer import Peer, Run
from headrace.bench.shapes import CONFIGS, write_checkpoint
from headrace.bench.step_model import BF16, FP32, shape_of
from headrace.bench.sweep import measure_sweep
from headrace.runtime.config import EngineConfig
from headrace.runtime.engine import open_engine
from headrace.runtime.models.registry import read_model_config

if TYPE_CHECKING:
    from headrace.runtime.cpu_engine import CpuEngine
    from headrace.runtime.device_engine import DeviceEngine


def numbers(text: str) -> list[int]:
    """Whole numbers above zero, separated by commas."""
    found = [int(part) for part in text.split(",") if part]
    if any(number < 1 for number in found):
        raise argparse.ArgumentTypeError(f"{text}: numbers from 1 on")
    return found


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="headrace bench step",
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    gpu = torch.cuda.is_available()
    parser.add_argument(
        "--shape", choices=sorted(CONFIGS), default="qwen3-0.6b", help="shape of a random model"
    )
    parser.add_argument("--model", type=Path, help="a model folder to use instead of a random one")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to run")
    parser.add_argument(
        "--rows", type=numbers, default="1,8,64,256" if gpu else "1,8", help="streams of a step"
    )
    parser.add_argument(
        "--contexts", type=numbers, default="1024" if gpu else "128", help="tokens each row holds"
    )
    parser.add_argument("--steps", type=int, default=64 if gpu else 16, help="decode steps of one round")
    parser.add_argument(
        "--rounds", type=int, default=3, help="how often each cell is measured, after one discarded"
    )
    parser.add_argument(
        "--streams", type=numbers, default="", help="also beside transformers, with so many streams"
    )
    parser.add_argument(
        "--prompt", type=int, default=112, help="--streams: prompt tokens (mean over the streams)"
    )
    parser.add_argument("--tokens", type=int, default=32, help="--streams: tokens to generate per stream")
    parser.add_argument("--deterministic", action="store_true", help="the same bits in any batch (CPU only)")
    parser.add_argument("--alone", action="store_true", help="--streams: without transformers")
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="compute type"
    )
    parser.add_argument(
        "--decode",
        choices=("auto", "native", "torch"),
        default="auto",
        help="what runs steps of few tokens on the CPU",
    )
    parser.add_argument("--threads", type=int, default=0, help="compute threads (0 = physical cores)")
    parser.add_argument("--patience", type=float, default=0.0, help="seconds to wait until others are quiet")
    parser.add_argument("--out", type=Path, help="write the JSON to this file as well")
    given = parser.parse_args(argv)
    if given.steps < 8 or given.rounds < 1:
        parser.error("--steps from 8 on, --rounds from 1 on")
    return given


def main(argv: Sequence[str] | None = None) -> int:
    """Run the bench; 0 if it finished. Prints a table, then one line of JSON."""
    args = arguments(argv)
    # This thread's OpenMP team must stay alone: two teams in one process would make each other wait in sleep.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as temporary:
        folder = args.model
        on_gpu = args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available())
        made_up = folder is None and on_gpu and (args.alone or not args.streams)
        if folder is None:
            folder = Path(temporary) / args.shape
            print(f"writing a model folder in the shape of {args.shape} ...", flush=True)
            write_checkpoint(folder, CONFIGS[args.shape], weights=not made_up)
        result = measure(args, folder, "random" if made_up else "checkpoint")
    print_streams(result)
    line = json.dumps(result)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(line)
    return 0


def measure(
    args: argparse.Namespace, folder: Path, weights: Literal["checkpoint", "random"]
) -> dict[str, Any]:
    """The sweep, then the streams in turns with the peer."""
    started = time.perf_counter()
    longest = max([*args.contexts, args.prompt * 2 + args.tokens if args.streams else 1])
    engine = open_engine(
        folder,
        EngineConfig(
            device=args.device,
            dtype=args.dtype,
            deterministic=args.deterministic,
            weights=weights,
            threads=args.threads,
            decode=args.decode,
            max_running=max(8, *args.rows, *args.streams),
            max_context=min(longest + args.steps + 8, read_model_config(folder).max_positions),
        ),
    )
    engine.warm()
    ready = time.perf_counter() - started
    shape = shape_of(engine.model_config, args.shape if args.model is None else args.model.name)
    precision = BF16 if engine.config.dtype == "bfloat16" else FP32
    machine = machine_of(engine.config.device, engine.config.threads)
    gc.collect()
    print(
        f"{shape.name}, {engine.config.dtype} on {machine.name}: reads {machine.read_bytes / 1e9:.1f} GB/s, "
        f"{machine.flops[precision.weights] / 1e12:.3g} TFLOP/s\n" + CELL_HEAD,
        flush=True,
    )
    cells, prompts = measure_sweep(
        engine, args.rows, args.contexts, args.steps, args.rounds, (shape, machine, precision), print_cell
    )
    found = in_turns(args, engine, folder) if args.streams else {}
    engine.close()
    return {
        "bench": "step",
        "model": shape.name,
        "dtype": engine.config.dtype,
        "weights": weights,
        "device": engine.config.device,
        "shape": dataclasses.asdict(shape),
        "precision": dataclasses.asdict(precision),
        "rates": {
            "read_gb_s": round(machine.read_bytes / 1e9, 2),
            "tflops": round(machine.flops[precision.weights] / 1e12, 3),
        },
        "flags": {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()},
        "engine": {
            "chunk_tokens": engine.chunk_tokens,
            "page_size": engine.page_size,
            "decode": engine.config.decode,
            "start_s": round(ready, 2),
        },
        "machine": facts_of_machine(engine.config.threads),
        "sweep": cells,
        "prompts": prompts,
        "cells": found,
        "ratios": ratios(found, args.streams) if found else {},
    }


def in_turns(
    args: argparse.Namespace, engine: CpuEngine | DeviceEngine, folder: Path
) -> dict[str, dict[str, Any]]:
    """Both sides, all stream counts, round after round; the first round is discarded."""
    room = (args.prompt * 2 + args.tokens) * max(args.streams)
    assert engine.page_count * engine.page_size >= room, "the streams fit the slab"
    peer = None
    if not args.alone:
        if importlib.util.find_spec("transformers") is None:
            print("transformers is not installed: measuring headrace alone")
        else:
            peer = Peer(folder, engine.config.dtype, engine.config.threads, engine.config.device)
    ours = [os.getpid(), *([peer.pid] if peer else [])]
    runs: dict[str, list[Run]] = {}
    patience = args.patience
    for turn in range(args.rounds + 1):
        for count in args.streams:
            prompts = make_prompts(count, args.prompt, engine.embedding_rows, seed=turn)
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
    if peer is not None:
        peer.close()
    return {name: summary(found, int(name.rpartition("_")[2])) for name, found in runs.items()}


CELL_HEAD = (
    f"{'rows':>5}{'context':>9}{'step ms':>10}{'floor':>9}{'% floor':>9}{'model':>9}{'tok/s':>10}"
    f"{'launch µs':>11}{'gap µs p50':>12}{'p99':>9}{'others':>8}"
)


def print_cell(cell: dict[str, Any]) -> None:
    """One line of the sweep."""
    start = f"{cell['rows']:>5}{cell['context']:>9g}"
    if "left_out" in cell:
        print(f"{start}  left out: {cell['left_out']}", flush=True)
        return
    print(
        f"{start}{cell['step_ms']:>10.3f}{cell['floor_ms']:>9.3f}{cell['pct_of_floor']:>9.1f}"
        f"{cell['predicted_ms']:>9.3f}{cell['tokens_per_s']:>10.1f}{cell['launch_us_p50']:>11.1f}"
        f"{cell['gap_us_p50']:>12.1f}{cell['gap_us_p99']:>9.1f}{cell['cpus_busy_elsewhere']:>8.2f}",
        flush=True,
    )


def print_streams(result: dict[str, Any]) -> None:
    """The prompt steps of the sweep and the comparison with the peer."""
    for cell in result["prompts"]:
        print(
            f"prompt tokens {cell['begin']} to {cell['begin'] + cell['chunk']}: {cell['step_ms']:.2f} ms, "
            f"floor {cell['floor_ms']:.2f}, {cell['pct_of_floor']:.0f} %"
        )
    if result["cells"]:
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
