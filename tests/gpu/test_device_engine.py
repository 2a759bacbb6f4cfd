"""Greedy tokens of the GPU engine in float32: those of transformers and of the CPU engine, however requests run."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from device_rig import Run, write_small
from interpreted import ON_GPU

from headrace.runtime.config import SettingError
from headrace.runtime.device_engine import DeviceEngine
from headrace.runtime.request import FinishReason, Phase, Req

# Without a GPU, two of the architectures and a few tokens; test_device_parity compares the logits of all of them.
VARIANTS = ("llama-3.1", "qwen3-sliding")
if ON_GPU:
    VARIANTS += (
        "llama-biased",
        "llama-linear",
        "llama-yarn",
        "mistral-full",
        "qwen2",
        "qwen2-sliding",
        "qwen3",
    )
PROMPTS, TOKENS = (16, 64) if ON_GPU else (3, 4)


@pytest.mark.parametrize("name", VARIANTS)
def test_answers_of_transformers(
    name: str, tiny: Callable[[str], Any], device_engine: Callable[..., DeviceEngine]
) -> None:
    model = tiny(name)
    samples = model.oracle(PROMPTS)
    run = Run(device_engine(model.folder))
    run.engine.warm(budget=60.0 if ON_GPU else 0.0)
    reqs = [run.add(sample.prompt, TOKENS) for sample in samples]
    run.finish()
    assert [run.answer(req) for req in reqs] == [sample.answer[:TOKENS] for sample in samples]
    assert run.leaked() == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = {"num_hidden_layers": 3, "hidden_size": 128, "intermediate_size": 256} if ON_GPU else {}
    return write_small(tmp_path_factory.mktemp("small"), seed=8, **changes)


@pytest.fixture
def alone(folder: Path, start: Callable[..., Any]) -> Callable[[list[int], int], list[int]]:
    """alone(prompt, tokens): what the CPU engine answers to nobody else's requests."""
    engine = start(folder)

    def answer(prompt: list[int], tokens: int) -> list[int]:
        run = Run(engine, prefix_cache=False)
        req = run.add(prompt, tokens)
        run.finish()
        return run.answer(req)

    return answer


def prompts_of(*lengths: int) -> list[list[int]]:
    rng = random.Random(sum(lengths))
    return [rng.choices(range(97), k=length) for length in lengths]


def test_chunks_of_any_size(folder: Path, alone: Any, device_engine: Any) -> None:
    prompts = prompts_of(70, 5, 33, 64, 17, 1, 128) if ON_GPU else prompts_of(17, 2)
    expected = [alone(prompt, TOKENS) for prompt in prompts]
    engine = device_engine(folder, max_context=256)
    for chunk in (1, 7, 64):
        run = Run(engine, chunk_tokens=chunk, prefix_cache=False)
        reqs = [run.add(prompt, TOKENS) for prompt in prompts]
        run.finish()
        assert [run.answer(req) for req in reqs] == expected, f"in chunks of {chunk}"


def test_prefix_hits_and_what_follows_them(folder: Path, alone: Any, device_engine: Any) -> None:
    """Requests that share the pages of a prefix and then say something else; the first goes on beside them."""
    prefix = prompts_of(48 if ON_GPU else 32)[0]
    prompts = [[*prefix, *tail] for tail in prompts_of(3, 20, 1, 7)] + [
        prefix,
        prefix[:17],
        [*prefix[:16], 5],
    ]
    expected = [alone(prompt, TOKENS) for prompt in prompts]
    run = Run(device_engine(folder))
    first = run.add(prompts[0], TOKENS)
    while first.landed_len < len(prompts[0]):
        run.step()
    assert first.finish is None
    others = [run.add(prompt, TOKENS) for prompt in prompts[1:]]
    run.finish()
    assert [run.answer(req) for req in (first, *others)] == expected
    assert run.scheduler.counters.cached_tokens >= 16 * (len(prompts) - 1)
    # Answers are cached, too: a prompt that goes on with one finds it.
    before = run.scheduler.counters.cached_tokens
    longer = [*prompts[1], *expected[1], *prompts_of(2)[0]]
    req = run.add(longer, 2)
    run.finish()
    assert run.answer(req) == alone(longer, 2)
    assert run.scheduler.counters.cached_tokens - before == (len(longer) - 3) // 16 * 16
    assert run.leaked() == 0


def test_forks_diverge_from_the_middle_of_a_page(folder: Path, alone: Any, device_engine: Any) -> None:
    """A fork copies the part page it shares and writes into the copy; so does a fork of the fork. Its parent, which
    writes on in the page at the same time, and its twin that says the same as the parent, notice nothing."""
    prompt = prompts_of(21)[0]
    length = 2 * TOKENS
    expected = alone(prompt, length)
    run = Run(device_engine(folder), prefix_cache=False)
    parent = run.add(prompt, length)
    while parent.output_len < 2:
        run.step()
    assert parent.phase is Phase.DECODE
    other = [*prompt[:19], 7, 8]
    twin = run.add([*prompt, *expected[:2]], length - 2, parent=parent, at=len(prompt))
    fork = run.add(other, TOKENS, parent=parent, at=19)
    while fork.output_len < 1:
        run.step()
    farther = [*other, 9]
    second = run.add(farther, TOKENS, parent=fork, at=len(other))
    run.finish()
    assert run.answer(parent) == expected and run.answer(twin) == expected[2:]
    assert run.answer(fork) == alone(other, TOKENS)
    assert run.answer(second) == alone(farther, TOKENS)
    assert run.scheduler.counters.copied_pages == 3
    assert run.leaked() == 0


def test_few_pages_pauses_and_cancels(folder: Path, alone: Any, device_engine: Any) -> None:
    """Requests are retracted and start over, paused and resumed, cancelled in every phase; pages and slots change
    hands all the time. Whoever is left answers as alone."""
    rng = random.Random(11)
    count = 40 if ON_GPU else 6
    prompts = prompts_of(*(rng.randint(1, 30) for _ in range(count)))
    tokens = 24 if ON_GPU else 9
    # Three requests grow to at most 3 pages each, and there are 5.
    run = Run(device_engine(folder, max_running=3), page_count=5, ahead_tokens=0)
    waiting = list(prompts)
    kept: list[tuple[list[int], Req]] = []
    strangers: list[Req] = []
    for number in range(10_000):
        if waiting and number % 3 == 0:
            prompt = waiting.pop()
            kept.append((prompt, run.add(prompt, tokens)))
            if len(kept) % 3 == 0:
                strangers.append(run.add(prompts_of(9 + number % 20)[0], tokens))
        if number % 5 == 2:
            running = [req for _, req in kept if req.phase is Phase.DECODE and req.finish is None]
            if running:
                run.scheduler.pause(rng.choice(running))
        if number % 5 == 4 or not run.flight:
            for req in list(run.scheduler.paused.values()):
                run.scheduler.resume(req)
        if strangers and number % 4 == 1:
            run.cancel(strangers.pop())
        if not run.step() and not waiting and not run.scheduler.paused:
            break
    assert all(req.finish is FinishReason.LENGTH for _, req in kept) and len(kept) == count
    for prompt, req in kept:
        assert run.answer(req) == alone(prompt, tokens)
    assert run.scheduler.counters.retractions > 0
    assert run.leaked() == 0


def test_a_head_size_that_only_the_cpu_takes(tiny: Any, device_engine: Any) -> None:
    with pytest.raises(SettingError, match="power of two"):
        device_engine(tiny("llama").folder)
