"""Whether a model's decode steps of few rows can run as native code on this machine, and what that takes.

The only way to that code: LLVM is imported here and not before, so all else works where it is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch

from headrace.runtime.models.config import ModelConfig
from headrace.runtime.sampling import Weigh
from headrace.runtime.slab import KVSlab

if TYPE_CHECKING:
    from headrace.runtime.backends.native_step import NativeStep
    from headrace.runtime.backends.step_form import StepSizes
    from headrace.runtime.models.host_decoder import HostDecoder
    from headrace.runtime.models.llama import Llama

Maker = Callable[["Llama", KVSlab], "HostDecoder"]


def reads_plain(config: ModelConfig, name: str) -> bool:
    """True for the matrices that a native step reads in their plain form: those of the decoder's layers, and a head
    of its own. A tied head is the embedding, which is there anyway."""
    return name.startswith(f"{config.prefix}.layers.") or (
        name.startswith("lm_head.") and not config.tied_head
    )


def plain_elements(config: ModelConfig, parts: Mapping[str, tuple[int, ...]]) -> int:
    """How many numbers these matrices have. parts: shapes of all tensors of the model."""
    return sum(
        math.prod(shape) for name, shape in parts.items() if len(shape) == 2 and reads_plain(config, name)
    )


def native_obstacles(config: ModelConfig) -> tuple[str, str]:
    """Why this model and machine run no native step, and why none with several threads; empty: they do."""
    if config.experts is not None:
        return "mixtures of experts are not written natively", ""
    if config.gemma is not None:
        return "Gemma's layers are not written natively", ""
    try:
        from headrace.runtime.backends.native_step import NoNativeStep, team_addresses, vector_width
    except ImportError:
        return "the package llvmlite is not installed", ""
    try:
        vector_width()
    except NoNativeStep as reason:
        return str(reason), ""
    try:
        team_addresses()
    except NoNativeStep as reason:
        return "", str(reason)
    return "", ""


class NativeCode(NamedTuple):
    """What was compiled. decoder: makes the decoder of a built model and its slab. weigh: see RowScratch."""

    decoder: Maker
    weigh: Weigh


def start_compiling(
    config: ModelConfig, dtype: torch.dtype, page_size: int, threads: int
) -> Future[NativeCode]:
    """Begin to compile on a thread of its own."""

    def work() -> NativeCode:
        from headrace.runtime.backends.native_draw import NativeDraw
        from headrace.runtime.models.host_decoder import HostDecoder, step_sizes

        sizes = step_sizes(config, dtype, page_size)
        native = compiled(sizes, threads)
        return NativeCode(
            lambda model, kv: HostDecoder(model, kv, sizes, native, threads),
            NativeDraw(config.vocab_size).weigh,
        )

    worker = ThreadPoolExecutor(1, "headrace-compile")
    found = worker.submit(work)
    worker.shutdown(wait=False)
    return found


@lru_cache(maxsize=16)
def compiled(sizes: StepSizes, threads: int) -> NativeStep:
    """The native step of these sizes: it holds no state, so engines of one process share it."""
    from headrace.runtime.backends.native_step import NativeStep

    return NativeStep(sizes, threads)
