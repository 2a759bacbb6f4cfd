"""Predicted load runs: near the design's target cells, and true to the rules they claim to follow."""

from __future__ import annotations

import dataclasses

import pytest

from headrace.bench.prediction import SCENARIOS, ChunkRule, Scenario, outlook
from headrace.bench.step_model import SHAPES, STAGES, predicted_ms

# Tokens per second and TPOT (ms) of the design's stage-1 targets.
TARGETS = {
    ("qwen3-0.6b", "single_128_256"): (1620, 0.61),
    ("qwen3-0.6b", "single_2048_64"): (1340, 0.67),
    ("qwen3-0.6b", "c8_512_256"): (10100, 0.77),
    ("qwen3-0.6b", "c64_512_256"): (30500, 1.98),
    ("qwen3-0.6b", "c256_512_256"): (37000, 6.5),
    ("qwen3-0.6b", "prefix_2048_64_32"): (9200, 1.64),
    ("llama-3.1-8b", "single_128_256"): (242, 4.12),
    ("llama-3.1-8b", "single_2048_64"): (205, 4.19),
    ("llama-3.1-8b", "c8_512_256"): (1730, 4.42),
    ("llama-3.1-8b", "c64_512_256"): (7500, 7.5),
    ("llama-3.1-8b", "c256_512_256"): (10400, 21.7),
    ("llama-3.1-8b", "prefix_2048_64_32"): (2670, 5.3),
}


@pytest.mark.parametrize(("shape", "scenario"), TARGETS)
def test_outlooks_are_the_target_cells(shape: str, scenario: str) -> None:
    rate, tpot = TARGETS[shape, scenario]
    seen = outlook(SCENARIOS[scenario], SHAPES[shape])
    assert seen.tokens_per_s == pytest.approx(rate, rel=0.08)
    assert seen.tpot_p50 == pytest.approx(tpot, rel=0.08)
    assert 0 < seen.pct_of_floor < 100


def test_one_stream_is_the_step_model() -> None:
    shape = SHAPES["llama-3.1-8b"]
    seen = outlook(Scenario("one", 1, 128, 3, waves=1), shape)
    assert seen.tpot_p50 == pytest.approx((predicted_ms(shape, 1, 129) + predicted_ms(shape, 1, 130)) / 2)


def test_a_tighter_rule_shortens_the_longest_gap() -> None:
    scenario, shape = Scenario("mixed", 16, 700, 64, waves=4), SHAPES["llama-3.1-8b"]
    gaps = [outlook(scenario, shape, rule=ChunkRule(stretch)).itl_max for stretch in (1.5, 3.0, 6.0)]
    assert gaps == sorted(gaps) and gaps[0] < gaps[-1]


def test_a_cached_prefix_is_not_computed_again() -> None:
    shape = SHAPES["llama-3.1-8b"]
    cold = SCENARIOS["prefix_2048_64_32"]
    assert outlook(cold, shape).ttft_p50 < outlook(dataclasses.replace(cold, cached=0), shape).ttft_p50 / 5


def test_later_stages_promise_more() -> None:
    rates = [
        outlook(SCENARIOS["c8_512_256"], SHAPES["qwen3-0.6b"], STAGES[stage]).tokens_per_s for stage in STAGES
    ]
    assert rates == sorted(rates)
