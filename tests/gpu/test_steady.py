"""What a step must not do once the engine serves: allocate, wait for the device, compile, or answer differently."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from device_rig import Run, write_small
from interpreted import ON_GPU

from headrace.runtime.device_engine import DeviceEngine
from headrace.runtime.request import FinishReason, Phase, Req, SamplingParams

STEPS, REQUESTS, LENGTH = (200, 60, 6) if ON_GPU else (12, 6, 3)
PARAMS = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.9, seed=5),
    SamplingParams(temperature=0.8, top_k=20, top_p=0.9, seed=6),
    SamplingParams(temperature=1.1, repetition_penalty=1.2, presence_penalty=0.3, seed=7),
    SamplingParams(temperature=0.0, frequency_penalty=0.4, logit_bias=((3, 2.0), (11, -5.0))),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("small"), vocab_size=3001 if ON_GPU else 97)


def mixed_load(engine: Any, steps: int, requests: int) -> dict[str, list[int]]:
    """Requests that join step by step, with penalties, forks (page copies), pauses, cancels; the answers by name.

    When somebody is forked, paused or cancelled depends on the engine's pace; what a name asks for does not."""
    rng = random.Random(17)
    vocab = engine.model_config.vocab_size
    prompts = [rng.choices(range(vocab), k=rng.choice((2, 9, 21, 40))) for _ in range(requests)]
    run = Run(engine, ahead_tokens=16, prefix_cache=False)
    named: dict[str, Req] = {}
    for number in range(steps):
        for index, prompt in enumerate(prompts):
            if str(index) not in named and index * steps <= number * requests:
                params = PARAMS[index % len(PARAMS)]
                named[str(index)] = run.add(prompt, LENGTH + 2 * (index % 5), params)
            parent = named.get(str(index))
            fork = f"fork of {index}"
            if parent is not None and index % 3 == 0 and fork not in named and parent.output_len > 0:
                if parent.phase is not Phase.DECODE:
                    continue
                more = [*prompt, index % vocab]
                named[fork] = run.add(more, LENGTH, PARAMS[index % len(PARAMS)], parent, len(prompt))
        running = [req for req in named.values() if req.finish is None and req.phase is Phase.DECODE]
        if number % 7 == 3 and running:
            run.cancel(rng.choice(running))
        if number % 5 == 1 and running:
            run.scheduler.pause(rng.choice(running))
        if number % 5 == 4:
            resume_all(run)
        run.step()
    resume_all(run)
    run.finish()
    assert run.scheduler.counters.copied_pages > 0
    assert {FinishReason.LENGTH, FinishReason.CANCELLED} == {req.finish for req in named.values()}
    assert run.leaked() == 0
    return {name: run.answer(req) for name, req in named.items()}


def resume_all(run: Run) -> None:
    for req in list(run.scheduler.paused.values()):
        run.scheduler.resume(req)


@contextmanager
def nothing_hidden() -> Iterator[None]:
    """On a GPU: no wait for the device but those that say so, and no memory taken, there or in pinned pages."""
    if not ON_GPU:
        yield
        return
    torch.cuda.synchronize()

    def taken() -> list[int]:
        device, host = torch.cuda.memory_stats(), torch.cuda.host_memory_stats()
        return [
            device["allocation.all.allocated"],
            device["num_alloc_retries"],
            device["reserved_bytes.all.allocated"],
            host["num_host_alloc"],
        ]

    before = taken()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert taken() == before


def specialized(kernel: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, ...]:
    """What Triton compiles a kernel for, computed as Triton does it."""
    apart = set(kernel.kwargs.get("do_not_specialize") or ())
    annotations = kernel.fn.__annotations__
    bound = inspect.signature(kernel.fn).bind_partial(
        *arguments, **{name: value for name, value in options.items() if name in kernel.arg_names}
    )
    found: list[Any] = [kernel.fn.__qualname__]
    for name, value in bound.arguments.items():
        if "constexpr" in str(annotations.get(name)):
            found.append((name, value))
        elif isinstance(value, torch.Tensor):
            found.append((name, value.dtype, value.data_ptr() % 16 == 0))
        elif isinstance(value, int) and not isinstance(value, bool) and name not in apart:
            found.append((name, value == 1, value % 16 == 0, value >= 1 << 31))
        else:
            found.append((name, type(value)))
    found += sorted((name, value) for name, value in options.items() if name not in kernel.arg_names)
    return tuple(found)


@contextmanager
def compiled_meanwhile() -> Iterator[set[Any]]:
    """What Triton compiles; in its interpreter, what it would compile for every launch."""
    import triton

    found: set[Any] = set()
    if ON_GPU:
        triton.knobs.runtime.jit_post_compile_hook = lambda *_, **told: found.add(told["repr"])
        try:
            yield found
        finally:
            triton.knobs.runtime.jit_post_compile_hook = None
        return
    from triton.runtime.interpreter import InterpretedFunction

    plain = InterpretedFunction.run

    def run(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        found.add(specialized(self, arguments, options))
        plain(self, *arguments, grid=grid, warmup=warmup, **options)

    InterpretedFunction.run = run
    try:
        yield found
    finally:
        InterpretedFunction.run = plain


def test_steps_neither_allocate_nor_wait_nor_compile(
    folder: Path, device_engine: Callable[..., DeviceEngine], start: Callable[..., Any]
) -> None:
    """And the same load has the same answers again, on a GPU drawn ones too, and those of the CPU engine."""
    engine = device_engine(folder, max_running=16 if ON_GPU else 4, chunk_tokens=64, max_context=128)
    with compiled_meanwhile() as at_start:
        engine.warm(budget=600.0)
    with compiled_meanwhile() as later:
        first = mixed_load(engine, STEPS, REQUESTS)
    assert not (later if ON_GPU else later - at_start)
    with nothing_hidden():
        again = mixed_load(engine, STEPS, REQUESTS) if ON_GPU else first
    assert again == first
    by_cpu = mixed_load(start(folder, chunk_tokens=64), STEPS, REQUESTS)
    shared = first.keys() & by_cpu.keys()
    assert len(shared) >= REQUESTS
    for name in shared:
        count = min(len(first[name]), len(by_cpu[name]))  # either may have been cancelled
        assert first[name][:count] == by_cpu[name][:count], name
