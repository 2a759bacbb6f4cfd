"""What `headrace bench kernels` times: work of one kernel, beside its plain-torch twin and a library's version.

A kernel module `kernels/<op>.py` offers `bench_cases(device, dtype)`, a generator that yields one Case after the
other (lazily: the tensors of one case die before those of the next are made), for the shapes of Qwen3-0.6B and
Llama-3.1-8B at the row counts that matter to the op.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

WIDTHS: dict[str, dict[str, int]] = {
    "qwen3-0.6b": {
        "hidden": 1024, "inner": 3072, "heads": 16, "kv_heads": 8, "head_dim": 128, "layers": 28, "vocab": 151936,
    },
    "llama-3.1-8b": {
        "hidden": 4096, "inner": 14336, "heads": 32, "kv_heads": 8, "head_dim": 128, "layers": 32, "vocab": 128256,
    },
}  # fmt: skip
"""The two models whose shapes are timed."""

# Read more than this between two uses of one tensor and no cache of today still holds it (H200: 60 MB of L2).
COLD_BYTES = 256 << 20
MOST_SETS = 64


@dataclass(frozen=True, slots=True)
class Case:
    """One timed call. All callables close over ready tensors filled with random data, never zeros.

    name: model, shape and rows, as "qwen3-0.6b qkv rows=8". Unique within its module.
    run, twin, peer: called with the number of an input set, 0 <= number < `sets`; each returns its output tensor
        (None where it writes in place), so that the bench can tell how far `run` is from `twin`. `run` launches the
        kernel, neither synchronizes nor reads back, and can be captured; it is called on CUDA tensors only. `twin`
        is the plain-torch meaning and `peer` a library's way of the same work (cuBLAS through F.linear, SDPA);
        None where there is none. Both also work on CPU tensors.
    bytes, flops: the least bytes one call must move to and from memory (each input read once, each output written
        once, padding not at all) and the operations it must do (a multiply-add is two).
    sets: how many equal-shaped input sets the callables rotate over: see `sets_for`.
    """

    name: str
    run: Callable[[int], torch.Tensor | None]
    twin: Callable[[int], torch.Tensor | None] | None
    peer: Callable[[int], torch.Tensor | None] | None
    bytes: int
    flops: int
    sets: int = 1

    def __post_init__(self) -> None:
        assert self.bytes > 0 and self.flops >= 0, self.name
        assert 1 <= self.sets <= MOST_SETS, self.name


def sets_for(cold: int) -> int:
    """How many input sets keep `cold` bytes per call out of the cache between two uses.

    `cold` counts only what a running model finds cold, weights and KV; activations come out of the cache in a real
    step too, so a case without weights or KV passes 0 and gets one set. At most MOST_SETS.
    """
    assert cold >= 0
    return 1 if cold == 0 else min(MOST_SETS, -(-COLD_BYTES // cold))
