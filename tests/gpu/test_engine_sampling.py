"""Tokens drawn inside the GPU engine's steps: those of the CPU engine, whoever shares the batch; a row that is not
finite fails alone."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from device_rig import GREEDY, Run, grant, step, write_small
from interpreted import ON_GPU
from safetensors.torch import load_file, save_file

from headrace.runtime.device_engine import DeviceEngine
from headrace.runtime.plan import NON_FINITE, PlanRow
from headrace.runtime.request import FinishReason, Req, SamplingParams

VOCAB = 3001 if ON_GPU else 97
REQUESTS, TOKENS = (22, 16) if ON_GPU else (11, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("small"), vocab_size=VOCAB)


def settings(number: int, stops: frozenset[int]) -> SamplingParams:
    """One of eleven kinds; `stops` are for those that know some."""
    common: dict[str, Any] = {"temperature": 0.9, "seed": (1 << 63) + 977 * number}
    kinds: tuple[dict[str, Any], ...] = (
        {"temperature": 0.0},
        {},
        {"top_k": 7},
        {"top_p": 0.6},
        {"min_p": 0.1},
        {"top_k": 12, "top_p": 0.9, "min_p": 0.02, "temperature": 1.4},
        {"repetition_penalty": 1.3},
        {"presence_penalty": 0.8, "frequency_penalty": -0.6, "top_p": 0.8},
        {"logit_bias": ((5, 4.0), (5, 1.0), (9, -100.0), (96, 3.0)), "temperature": 0.0},
        {"stop_ids": stops},
        {"stop_ids": stops, "min_tokens": 3, "temperature": 0.0},
    )
    return SamplingParams(**{**common, **kinds[number % len(kinds)]})


def run_all(engine: Any, stops: frozenset[int]) -> tuple[list[list[int]], list[Req]]:
    """The answers, and the requests."""
    rng = random.Random(9)
    run = Run(engine)
    reqs = [
        run.add(rng.choices(range(VOCAB), k=rng.randint(1, 12)), TOKENS, settings(number, stops))
        for number in range(REQUESTS)
    ]
    run.finish()
    assert run.leaked() == 0
    return [run.answer(req) for req in reqs], reqs


def test_the_cpu_engine_draws_the_same(
    folder: Path, device_engine: Callable[..., DeviceEngine], start: Callable[..., Any]
) -> None:
    by_cpu = start(folder)
    # What ends answers is taken from answers that nothing ended: their second tokens.
    free, _ = run_all(by_cpu, frozenset())
    stops = frozenset(answer[1] for answer in free)
    expected, reqs = run_all(by_cpu, stops)
    stopped = [req for req in reqs if req.finish is FinishReason.STOP]
    assert stopped and expected != free and any(len(answer) > 2 for answer in expected)
    found, again = run_all(device_engine(folder), stops)
    assert found == expected
    assert [req.finish for req in again] == [req.finish for req in reqs]


@pytest.fixture
def poisoned(folder: Path, tmp_path: Path) -> Path:
    """The same model, but token 77 has a NaN embedding: whoever reads it fails."""
    tensors = load_file(folder / "model.safetensors")
    # The head is its own matrix here, or every row of logits would have a NaN.
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.embed_tokens.weight"][77] = float("nan")
    shutil.copytree(folder, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(
        config.read_text().replace('"tie_word_embeddings": true', '"tie_word_embeddings": false')
    )
    save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "model"


def test_a_failed_row_is_told_by_its_token(
    poisoned: Path, device_engine: Callable[..., DeviceEngine]
) -> None:
    """The next step is often launched before anybody saw that: it runs, and the good row does not notice."""
    engine = device_engine(poisoned)
    good, bad = PlanRow(1, 1, 0, 2, (5, 6), True), PlanRow(0, 0, 0, 2, (77, 6), True)
    first = step(engine, grants=(grant(0, 3), grant(1, 2)), prefill=(bad, good))
    decode = (PlanRow(0, 0, 2, 1, None, True), PlanRow(1, 1, 2, 1, None, True))
    second = step(engine, decode=decode)
    assert (first[0], second[0]) == (NON_FINITE, NON_FINITE)
    alone = (step(engine, grants=(grant(4, 5),), prefill=(PlanRow(4, 4, 0, 2, (5, 6), True),))[0],
             step(engine, decode=(PlanRow(4, 4, 2, 1, None, True),))[0])  # fmt: skip
    assert (first[1], second[1]) == alone


def test_a_failed_request_fails_alone(
    folder: Path, poisoned: Path, device_engine: Callable[..., DeviceEngine], start: Callable[..., Any]
) -> None:
    """Requests with a NaN come and go, drawn and greedy; others, also those that get their pages and slots next,
    answer as the CPU engine does with the whole model."""
    rng = random.Random(4)
    prompts = [[token for token in rng.choices(range(VOCAB), k=20) if token != 77] for _ in range(4)]
    by_cpu = Run(start(folder))
    expected = [by_cpu.add(prompt, TOKENS) for prompt in prompts]
    by_cpu.finish()
    answers = [by_cpu.answer(req) for req in expected]
    assert not any(77 in answer for answer in answers)
    # Two slots and few pages, all of them used again.
    engine = device_engine(poisoned, max_running=3, page_size=16)
    run = Run(engine, page_count=6, prefix_cache=False)
    bad, good = [], []
    for number, prompt in enumerate(prompts):
        drawn = SamplingParams(temperature=0.8, repetition_penalty=1.1, seed=number)
        bad.append(run.add([3, 77, 5], TOKENS, drawn if number % 2 else GREEDY))
        good.append(run.add(prompt, TOKENS))
    run.finish()
    assert [req.finish for req in bad] == [FinishReason.ERROR] * len(bad)
    assert [run.answer(req) for req in good] == answers
    assert run.leaked() == 0
