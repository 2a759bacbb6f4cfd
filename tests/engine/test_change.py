"""Parameters that change while an answer runs, on a real model: what follows is what a fresh request says (M10)."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
from engine_rig import answer_of

from headrace.runtime.request import Change, SamplingParams

BEFORE = SamplingParams(temperature=1.0, seed=11)


@pytest.mark.parametrize(
    "after",
    [
        dataclasses.replace(BEFORE, temperature=0.0),
        dataclasses.replace(BEFORE, temperature=1.7, top_p=0.9),
        dataclasses.replace(BEFORE, top_k=3, min_p=0.05),
        dataclasses.replace(BEFORE, repetition_penalty=1.5, presence_penalty=1.0, frequency_penalty=0.7),
        dataclasses.replace(BEFORE, logit_bias=((7, 5.0), (9, 4.0))),
    ],
    ids=["greedy", "hotter", "cut", "penalties", "bias"],
)
def test_an_answer_goes_on_as_a_fresh_request_with_the_new_parameters_would(
    tiny: Any, start: Any, drive: Any, after: SamplingParams
) -> None:
    rng = random.Random(5)
    engine = start(tiny("qwen3").folder)
    control = drive(engine)
    prompts = [sample.prompt for sample in tiny("qwen3").oracle(4)]
    plain = [control.add(prompt, 40, BEFORE) for prompt in prompts]
    control.finish()
    run = drive(engine)
    reqs = [run.add(prompt, 40, BEFORE) for prompt in prompts]
    waits = [rng.randint(3, 25) for _ in reqs]
    for number in range(60):
        for req, wait in zip(reqs, waits, strict=True):
            if number == wait and req.finish is None:
                run.scheduler.change(req, Change(after, req.max_len))
        run.step()
    run.finish()
    for prompt, req, uncut in zip(prompts, reqs, plain, strict=True):
        at = req.changed_at
        assert len(prompt) < at < len(prompt) + 40
        assert req.tokens[:at] == uncut.tokens[:at], "before it, nothing is different"
        fresh = drive(engine)
        # Penalties that count the answer alone must know where it began.
        again = fresh.add(prompt, 40, after)
        again.tokens = list(req.tokens[:at])
        again.total_len = at
        fresh.finish()
        assert answer_of(again) == answer_of(req)
    assert any(answer_of(req) != answer_of(uncut) for req, uncut in zip(reqs, plain, strict=True))
