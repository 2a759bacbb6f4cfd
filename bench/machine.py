"""Where and with what something was measured, what the neighbours did meanwhile, and what a machine can do at best.

    python -P -m headrace.bench.machine 2

measures this machine's read rate and matrix rates with two threads: the constants that floors are computed from.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from headrace.bench.step_model import H200, Machine
from headrace.bench.surroundings import surroundings

READ_BYTES = 512 << 20
PRODUCT = 1024  # rows, columns and depth of the measured matrix product
ON_CPU = dataclasses.replace(
    H200,
    name="cpu",
    read_bytes=25e9,
    flops={2: 0.5e12, 4: 0.2e12, 1: 0.5e12},
    attention_floor_flops=0.5e12,
    attention_flops=0.1e12,
    weight_efficiency=0.9,
    kv_efficiency=0.5,
    compute_efficiency=((1, 0.6), (64, 0.9)),
    node_s=10e-6,
    step_s=300e-6,
    nodes_per_layer=13,
    request_s=1e-3,
)
"""A CPU by estimate: the rates until they are measured, the rest until `refit` has seen its steps."""


def facts_of_machine(threads: int) -> dict[str, Any]:
    """Where and with what a result was measured, versions and the compute device included; every results file of
    steps and kernels carries it."""
    versions = {}
    for name in ("torch", "triton", "transformers"):
        if importlib.util.find_spec(name) is not None:
            versions[name] = importlib.metadata.version(name)
    capabilities = torch.cpu.get_capabilities()
    return {
        **surroundings(),
        "avx512_bf16": bool(capabilities.get("avx512_bf16")),
        "amx_bf16": bool(capabilities.get("amx_bf16")),
        "threads": threads,
        "omp": {key: value for key, value in os.environ.items() if key.startswith(("OMP_", "GOMP_", "KMP_"))},
        "cuda": torch.version.cuda,
        **versions,
    }


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


def time_calls(call: Callable[[int], object], sets: int, least_s: float, most: int = 1000) -> list[float]:
    """Seconds of each call on the CPU, one after the other, over rotating input sets: as many as fit `least_s`, but
    at least three and at most `most`. One call goes before them and does not count."""
    call(0)
    found: list[float] = []
    begin = time.perf_counter()
    while len(found) < 3 or (time.perf_counter() - begin < least_s and len(found) < most):
        start = time.perf_counter()
        call((len(found) + 1) % sets)
        found.append(time.perf_counter() - start)
    return found


def measure_rates(device: torch.device, least_s: float = 0.4) -> dict[str, float]:
    """Bytes and operations per second at best: a reduction over more than any cache, and matrix products by bytes
    of an element ("2": bfloat16, "4": float32). On a CPU with this process's threads."""
    wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def seconds(work: Callable[[], object]) -> float:
        def call(_: int) -> None:
            work()
            wait()

        return min(time_calls(call, 1, least_s))

    count = READ_BYTES * (1 if device.type == "cpu" else 8) // 4
    long = torch.randn(count, device=device)
    found = {"read": count * 4 / seconds(long.sum)}
    size = PRODUCT * (1 if device.type == "cpu" else 8)
    for item, dtype in ((2, torch.bfloat16), (4, torch.float32)):
        left = torch.randn(size, size, device=device).to(dtype)
        right = torch.randn(size, size, device=device).to(dtype)
        found[str(item)] = 2 * size**3 / seconds(lambda a=left, b=right: torch.nn.functional.linear(a, b))  # type: ignore[misc]
    return found


def machine_of(device: str, threads: int) -> Machine:
    """The constants of the device that this process would compute on: measured on the spot, but for the H200,
    whose constants are the design's measurements."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
        if "H200" in name:
            return H200
        return with_rates(H200, name, measure_rates(torch.device("cuda")))
    # In a process of its own: a second team of threads would stay in this one and slow its steps down.
    asked = [sys.executable, "-P", "-m", "headrace.bench.machine", str(threads)]
    done = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=120)
    return with_rates(ON_CPU, "cpu", json.loads(done.stdout))


def with_rates(machine: Machine, name: str, rates: dict[str, float]) -> Machine:
    """`machine` with what `measure_rates` found; an 8-bit product is taken to be no faster than a 16-bit one, and
    attention to run at the rate of float32 products."""
    flops = {2: rates["2"], 4: rates["4"], 1: rates["2"]}
    return dataclasses.replace(
        machine,
        name=name,
        read_bytes=rates["read"],
        flops=flops,
        attention_floor_flops=rates["2"],
        attention_flops=rates["4"] / 2,
    )


def brief(value: float) -> float:
    """Five digits: what a measurement is worth, however small it is."""
    return float(f"{value:.5g}")


def spread(seconds: Sequence[float], unit: float = 1e3) -> tuple[float, float, float]:
    """Least, middle and 99th percentile, in `unit` to the second."""
    ordered = sorted(seconds)
    late = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return ordered[0] * unit, statistics.median(ordered) * unit, late * unit


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    print(json.dumps(measure_rates(torch.device("cpu"))))
