"""Running a model on the CPU: packed matrices, attention planned on the host once per step, one worker thread."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from headrace.kernels import reference
from headrace.runtime.backends.base import Linear
from headrace.runtime.backends.cpu_attention import CpuAttention
from headrace.runtime.backends.onednn import make_linear

T = TypeVar("T")

COMPUTE_NICENESS = 10


class CpuOps:
    """The reference ops, with faster spellings where the shapes are exact: nothing is padded on the CPU."""

    def __init__(self, dtype: torch.dtype, cell_elements: int = 0) -> None:
        attention = CpuAttention(dtype, cell_elements)
        self.reach = attention.reach
        self.attend = attention.attend

    resolve_tokens = staticmethod(reference.resolve_tokens)
    kv_cells = staticmethod(reference.kv_cells)
    copy_pages = staticmethod(reference.copy_pages)

    @staticmethod
    def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        # Rounded once, after the weight, where the reference rounds twice.
        if weight.dim() == 1:
            return F.rms_norm(x, weight.shape, weight, eps)
        return F.rms_norm(x, weight.shape[-1:], None, eps).mul_(weight)

    @staticmethod
    def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)

    @staticmethod
    def silu_mul(x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        return F.silu(x[:, :half]).mul_(x[:, half:])

    @staticmethod
    def store_kv(keys: Tensor, values: Tensor, key_cells: Tensor, value_cells: Tensor, cells: Tensor) -> None:
        key_cells.index_copy_(0, cells, keys)  # raises for a padded cell of -1: there are none here
        value_cells.index_copy_(0, cells, values)


def _yield_to_sockets() -> None:
    """The compute threads step back a little when the event loop wakes up: it needs microseconds, and where all
    cores compute it would otherwise wait for a whole time slice with tokens in hand. The threads of the OMP team
    inherit this from the one that starts them."""
    with contextlib.suppress(AttributeError, OSError):  # where threads have no priority of their own
        thread = threading.get_native_id()
        niceness = max(COMPUTE_NICENESS, os.getpriority(os.PRIO_PROCESS, thread))
        os.setpriority(os.PRIO_PROCESS, thread, niceness)


class CpuBackend:
    """One worker thread runs all steps in order. It stays inside torch, which gives up the GIL, so sockets on the
    loop thread are served meanwhile."""

    def __init__(self, threads: int, dtype: torch.dtype, cell_elements: int = 0) -> None:
        assert threads >= 1
        self.ops = CpuOps(dtype, cell_elements)
        self.threads = threads
        self._worker = ThreadPoolExecutor(1, "headrace-step", initializer=self._start)

    def _start(self) -> None:
        # The OpenMP team belongs to the thread that opens it, so its size is set there.
        _yield_to_sockets()
        torch.set_num_threads(self.threads)
        torch.set_grad_enabled(False)  # per thread, too

    def linear(self, weight: Tensor, bias: Tensor | None, keep: bool = False) -> Linear:
        return make_linear(weight, bias, keep)

    def submit(self, work: Callable[[], T]) -> Future[T]:
        return self._worker.submit(work)

    def close(self) -> None:
        self._worker.shutdown(wait=True)


def has_bf16() -> bool:
    """True if the CPU multiplies bfloat16 itself (AVX512_BF16 or AMX); without it, float32 is faster."""
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def physical_cores() -> int:
    """Cores this process may use, hyperthreads counted once, a container's quota respected."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = torch.cpu.get_capabilities().get("num_physical_cores") or allowed
    quota = allowed
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        quota = max(1, int(limit) // int(period)) if limit != "max" else allowed
    except (OSError, ValueError):
        pass  # no such file: not Linux, or no quota
    return max(1, min(allowed, int(cores), quota))


def free_bytes() -> int:
    """Memory that can be taken without swapping, a container's limit respected."""
    free = None
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    except OSError:
        pass
    if free is None:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            used = int(Path("/sys/fs/cgroup/memory.current").read_text())
            free = min(free, max(0, int(limit) - used))
    except (OSError, ValueError):
        pass
    return free
