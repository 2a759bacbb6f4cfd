"""Every kernel beside its plain-torch twin and a library's version: time, GB/s, TFLOP/s, percent of the floor.

    headrace bench kernels                               all kernels, at the shapes of Qwen3-0.6B and Llama-3.1-8B
    headrace bench kernels --ops norm,activation --match rows=8 --out kernels.json

Kernels and libraries are timed inside a replayed CUDA graph that rotates over cold inputs; twins call by call, as
some of them read lengths back. Without a GPU the twins and the libraries run on the CPU, and the kernels do not.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import itertools
import json
import os
import pkgutil
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the engine sets it, before torch is imported

import torch

import headrace.kernels
from headrace.bench.machine import brief, facts_of_machine, machine_of, time_calls
from headrace.bench.step_model import Machine, percent_of_floor, roof_s
from headrace.bench.timing import launched, replayed
from headrace.kernels import reference
from headrace.kernels.cases import Case
from headrace.runtime.backends.cpu import has_bf16, physical_cores

NO_GPU = "needs a GPU"


def kernel_modules() -> dict[str, ModuleType]:
    """Every module of headrace.kernels that offers cases, by its name."""
    found = {}
    for entry in pkgutil.iter_modules(headrace.kernels.__path__):
        module = importlib.import_module(f"headrace.kernels.{entry.name}")
        if hasattr(module, "bench_cases"):
            found[entry.name] = module
    return found


def untimed(timed: Sequence[str]) -> list[str]:
    """Kernel modules that launch an op with a twin, but offer no cases: named in every result."""
    found = []
    for entry in pkgutil.iter_modules(headrace.kernels.__path__):
        module = importlib.import_module(f"headrace.kernels.{entry.name}")
        own = [
            name for name, part in vars(module).items() if getattr(part, "__module__", "") == module.__name__
        ]
        if (
            entry.name not in timed
            and module is not reference
            and any(hasattr(reference, name) for name in own)
        ):
            found.append(entry.name)
    return found


def distance(found: torch.Tensor | None, wanted: torch.Tensor | None) -> float | None:
    """‖found − wanted‖ / ‖wanted‖ in float64; None where one of them is not told, NaN where one has a NaN."""
    if found is None or wanted is None:
        return None
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    exact = wanted.double()
    return float((found.double() - exact).norm() / exact.norm().clamp_min(1e-300))


def measure_case(
    op: str, case: Case, device: torch.device, machine: Machine, item: int, least_s: float
) -> dict[str, Any]:
    """One row of the table. Times in microseconds; None where a side does not exist or cannot run here."""
    on_gpu = device.type == "cuda"
    row: dict[str, Any] = {
        "op": op,
        "name": case.name,
        "rows": int(match.group(1)) if (match := re.search(r"rows=(\d+)", case.name)) else 1,
        "item": item,
        "sets": case.sets,
        "bytes": case.bytes,
        "flops": case.flops,
        "kernel_us": None,
        "error": None,
        "trouble": None if on_gpu else NO_GPU,
    }

    def seconds(call: Callable[[int], object], captured: bool) -> float:
        if not on_gpu:
            return statistics.median(time_calls(call, case.sets, least_s))
        return replayed(call, case.sets, device) if captured else launched(call, case.sets, device)

    if on_gpu:
        try:
            told = case.run(0)
            if told is not None and case.twin is not None:
                row["error"] = distance(told.clone(), case.twin(0))
            row["kernel_us"] = 1e6 * seconds(case.run, captured=True)
        except Exception as error:  # one kernel that does not compile or capture must not hide the others
            row["trouble"] = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
    row["twin_us"] = None if case.twin is None else 1e6 * seconds(case.twin, captured=False)
    row["peer_us"] = None if case.peer is None else 1e6 * seconds(case.peer, captured=True)
    floor = roof_s(case.bytes, case.flops, machine, item)
    row["floor_us"] = 1e6 * floor
    for side in ("kernel", "twin", "peer"):
        taken = row[f"{side}_us"]
        if taken is not None:
            row[f"{side}_gb_s"] = brief(case.bytes / taken / 1e3)
            row[f"{side}_tflops"] = brief(case.flops / taken / 1e6)
            row[f"{side}_pct_of_floor"] = brief(percent_of_floor(1e6 * floor, taken))
    return row


def cases_of(
    module: ModuleType, device: torch.device, dtype: torch.dtype, match: str, most: int
) -> Iterator[Case]:
    """The module's cases whose name has `match` in it, the first `most` of them (0: all)."""
    wanted = (case for case in module.bench_cases(device, dtype) if re.search(match, case.name))
    return itertools.islice(wanted, most or None)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the bench; 0 if every kernel ran (or no GPU is here to run them), 1 if one failed. Prints a table, then
    one line of JSON."""
    modules = kernel_modules()
    parser = argparse.ArgumentParser(
        prog="headrace bench kernels",
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--ops", default="", help=f"only these, comma separated: {', '.join(modules)}")
    parser.add_argument("--match", default="", help="only cases whose name has this regular expression in it")
    parser.add_argument("--most", type=int, default=0, help="cases of each op at most (0: all)")
    parser.add_argument(
        "--dtype", choices=("auto", "bfloat16", "float16", "float32"), default="auto", help="of the tensors"
    )
    parser.add_argument(
        "--threads", type=int, default=0, help="without a GPU: compute threads (0 = physical cores)"
    )
    parser.add_argument(
        "--seconds", type=float, default=0.2, help="without a GPU: time to spend on each side of a case"
    )
    parser.add_argument("--out", type=Path, help="write the JSON to this file as well")
    given = parser.parse_args(argv)
    asked = given.ops.split(",") if given.ops else list(modules)
    if unknown := sorted(set(asked) - set(modules)):
        parser.error(f"no kernels named {', '.join(unknown)} (known: {', '.join(modules)})")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    named = (
        given.dtype
        if given.dtype != "auto"
        else "bfloat16"
        if device.type == "cuda" or has_bf16()
        else "float32"
    )
    dtype: torch.dtype = getattr(torch, named)
    threads = given.threads or physical_cores()
    machine = machine_of(device.type, threads)
    torch.set_num_threads(1 if device.type == "cuda" else threads)
    print(
        f"{named} on {machine.name}: reads {machine.read_bytes / 1e9:.1f} GB/s, "
        f"{machine.flops[dtype.itemsize] / 1e12:.3g} TFLOP/s"
        + (
            ""
            if device.type == "cuda"
            else "; no GPU here: the kernels do not run, their twins and libraries do"
        )
    )
    print(HEAD, flush=True)
    rows = []
    for op in asked:
        for case in cases_of(modules[op], device, dtype, given.match, given.most):
            rows.append(measure_case(op, case, device, machine, dtype.itemsize, given.seconds))
            print_row(rows[-1])
            gc.collect()
    missing = untimed(list(modules))
    if missing:
        print(f"without cases: {', '.join(missing)}")
    result = {
        "bench": "kernels",
        "dtype": named,
        "device": device.type,
        "rates": {
            "read_gb_s": round(machine.read_bytes / 1e9, 2),
            "tflops": round(machine.flops[dtype.itemsize] / 1e12, 3),
        },
        "flags": {
            key: str(value) if isinstance(value, Path) else value for key, value in vars(given).items()
        },
        "machine": facts_of_machine(threads),
        "cases": rows,
        "without_cases": missing,
    }
    line = json.dumps(result)
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(line)
    return 1 if any(row["trouble"] not in (None, NO_GPU) for row in rows) else 0


HEAD = (
    f"{'op':<18}{'case':<36}{'floor µs':>10}{'kernel':>10}{'GB/s':>9}{'TFLOP/s':>9}{'% floor':>9}{'error':>9}"
    f"{'twin µs':>11}{'%':>6}{'library':>11}{'%':>6}"
)


def print_row(row: dict[str, Any]) -> None:
    """One line of the table: the kernel with its rates, the others with their share of the floor."""

    def cell(value: float | None, width: int, digits: int) -> str:
        return f"{'-':>{width}}" if value is None else f"{value:>{width}.{digits}f}"

    error = "-" if row["error"] is None else f"{row['error']:.1e}"
    print(
        f"{row['op']:<18}{row['name']:<36}{row['floor_us']:>10.2f}{cell(row['kernel_us'], 10, 2)}"
        f"{cell(row.get('kernel_gb_s'), 9, 0)}{cell(row.get('kernel_tflops'), 9, 1)}"
        f"{cell(row.get('kernel_pct_of_floor'), 9, 1)}{error:>9}{cell(row['twin_us'], 11, 1)}"
        f"{cell(row.get('twin_pct_of_floor'), 6, 0)}"
        f"{cell(row['peer_us'], 11, 1)}{cell(row.get('peer_pct_of_floor'), 6, 0)}"
        + (f"  {row['trouble']}" if row["trouble"] not in (None, NO_GPU) else ""),
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
