"""Guided rows on the GPU engine: each token is one that its grammar allows after those before it.

The answers are those of the CPU engine, whoever else is in the batch."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from device_rig import GREEDY, Run, write_small
from fake_engine import mix
from interpreted import ON_GPU

from headrace.runtime.device_engine import DeviceEngine
from headrace.runtime.request import FinishReason, Req, SamplingParams, TokenGrammar

VOCAB = 3001 if ON_GPU else 97
TOKENS = 24 if ON_GPU else 5


class Hashed(TokenGrammar):
    """Allows a few tokens, by a hash of all that were accepted; after `fails` of them none at all."""

    def __init__(self, fails: int = 1 << 30) -> None:
        self.accepted: list[int] = []
        self.fails = fails

    def allowed(self) -> set[int]:
        state = 1
        for token in self.accepted:
            state = mix(state, token)
        return {mix(state, draw) % VOCAB for draw in range(6)}

    def mask(self) -> bytes:
        if len(self.accepted) >= self.fails:
            return b""
        return sum(1 << token for token in self.allowed()).to_bytes(-(-VOCAB // 32) * 4, "little")

    def accept(self, token: int) -> None:
        assert token in self.allowed()
        self.accepted.append(token)

    def copy(self) -> Hashed:
        raise AssertionError("nobody asks for several answers here")

    @property
    def trouble(self) -> str:
        return "too complex" if len(self.accepted) >= self.fails else ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("small"), vocab_size=VOCAB)


def run_all(engine: Any) -> list[tuple[list[int], FinishReason | None]]:
    """Guided and free requests of several kinds together, one of them with a grammar that fails."""
    rng = random.Random(3)
    run, made = Run(engine), list[Req]()
    kinds = (
        (GREEDY, None),
        (GREEDY, Hashed()),
        (SamplingParams(temperature=0.9, seed=5), Hashed()),
        (SamplingParams(temperature=0.9, seed=5), None),
        (SamplingParams(top_k=5, top_p=0.9, seed=6), Hashed()),
        (SamplingParams(repetition_penalty=1.3, seed=7), Hashed()),
        (GREEDY, Hashed(fails=3)),
    )
    for params, grammar in kinds:
        prompt = rng.choices(range(VOCAB), k=rng.randint(1, 12))
        made.append(run.add(prompt, TOKENS, params, grammar=grammar))
    run.finish()
    assert run.leaked() == 0
    for req in made:
        if isinstance(req.grammar, Hashed):
            assert req.grammar.accepted == run.answer(req)
    return [(run.answer(req), req.finish) for req in made]


def test_the_cpu_engine_follows_the_same_grammars(
    folder: Path, device_engine: Callable[..., DeviceEngine], start: Callable[..., Any]
) -> None:
    expected = run_all(start(folder))
    assert run_all(device_engine(folder)) == expected
    assert expected[-1][1] is FinishReason.ERROR and len(expected[-1][0]) == 3
    assert [finish for _, finish in expected[:-1]] == [FinishReason.LENGTH] * 6
