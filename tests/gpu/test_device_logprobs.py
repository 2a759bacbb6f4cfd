"""Logprobs behind the GPU engine's steps: those of the CPU engine, and the steps themselves do not notice."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from device_rig import GREEDY, Run, write_small
from interpreted import ON_GPU

from headrace.runtime import device_probe
from headrace.runtime.device_engine import DeviceEngine
from headrace.runtime.logprobs import LogprobWish, TokenLogprob
from headrace.runtime.request import Req, SamplingParams

VOCAB = 3001 if ON_GPU else 97
TOKENS = 12 if ON_GPU else 3
TOLERANCE = 2e-4  # float32, summed in another order
DRAWN = SamplingParams(temperature=1.4, top_k=20, repetition_penalty=1.2, seed=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("small"), vocab_size=VOCAB)


def run_all(engine: Any, wishes: bool = True, **settings: Any) -> tuple[Run, list[Req]]:
    """Requests with and without logprobs, longer than a chunk and shorter than one, all at once."""
    rng = random.Random(31)
    run = Run(engine, **settings)
    kinds = (
        (70, 1, 5, GREEDY),
        (9, 1, 0, DRAWN),
        (12, None, 0, GREEDY),
        (33, 20, 20, DRAWN),
        (5, None, 3, GREEDY),
    )
    reqs = []
    for number, (length, first, top, params) in enumerate(kinds):
        wish = LogprobWish(top, first) if wishes and number != 2 else None
        reqs.append(run.add(rng.choices(range(VOCAB), k=length), TOKENS, params, wish=wish))
    run.finish()
    assert run.leaked() == 0
    return run, reqs


def places(run: Run, req: Req) -> list[TokenLogprob]:
    """Those of the prompt, then those of the answer."""
    wish = req.logprobs
    assert wish is not None
    prompt = wish.prompt
    known = req.tokens[req.prompt_len - len(prompt) : req.prompt_len]
    return [prompt.at(place, token, wish.top) for place, token in enumerate(known)] + run.logprobs[req.id]


def assert_equal(found: list[TokenLogprob], expected: list[TokenLogprob]) -> None:
    assert [each.token for each in found] == [each.token for each in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=TOLERANCE)
        values = [value for _, value in one.top]
        assert values == pytest.approx([value for _, value in other.top], abs=TOLERANCE)
        assert values == sorted(values, reverse=True)
        likely = dict(one.top)
        assert likely.get(one.token, one.logprob) == one.logprob


def assert_those_of(by_cpu: tuple[Run, list[Req]], found: tuple[Run, list[Req]]) -> None:
    for req, other in zip(found[1], by_cpu[1], strict=True):
        assert found[0].answer(req) == by_cpu[0].answer(other)
        if other.logprobs is None:
            assert req.id not in found[0].logprobs
        else:
            assert_equal(places(found[0], req), places(by_cpu[0], other))


def test_those_of_the_cpu_engine(
    folder: Path, device_engine: Callable[..., DeviceEngine], start: Callable[..., Any]
) -> None:
    expected = run_all(start(folder))
    engine = device_engine(folder)
    engine.warm(budget=60.0 if ON_GPU else 0.0)
    assert_those_of(expected, run_all(engine))
    # In the last block of the stream's rows, and in blocks of one row.
    assert_those_of(expected, run_all(engine, chunk_tokens=17))


def test_in_blocks_of_another_size(
    folder: Path,
    device_engine: Callable[..., DeviceEngine],
    start: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device_probe, "BLOCK_ROWS", 7)
    monkeypatch.setattr(device_probe, "SAMPLE_ROWS", 2)
    engine = device_engine(folder)
    assert engine._probe.block_rows == 7
    assert_those_of(run_all(start(folder)), run_all(engine))


def test_a_step_without_probes_launches_nothing_more(
    folder: Path, device_engine: Callable[..., DeviceEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = device_engine(folder)
    wishful, _ = run_all(engine)

    def never(*_: object) -> None:
        raise AssertionError("nobody asked for logprobs")

    monkeypatch.setattr(device_probe, "logprobs", never)
    monkeypatch.setattr(engine._probe, "plan", never)
    silent, _ = run_all(engine, wishes=False)
    assert silent.told == wishful.told, "the steps of others do not notice"
