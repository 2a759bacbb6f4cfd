"""The step model says what the design's tables say, keeps its own laws, and finds its constants again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from headrace.bench.step_model import (
    BF16,
    FP8_WEIGHTS,
    FP8_WEIGHTS_AND_KV,
    FP32,
    H200,
    SHAPES,
    STAGES,
    Machine,
    Precision,
    Work,
    floor_ms,
    observations,
    percent_of_floor,
    predicted_ms,
    prefill_floor_ms,
    refit,
    residuals,
    roof_s,
    shape_of,
    triangle,
    work_floor_ms,
    work_ms,
)
from headrace.runtime.models.registry import read_model_config

SMALL, LARGE = SHAPES["qwen3-0.6b"], SHAPES["llama-3.1-8b"]
DEMO = Path(__file__).resolve().parents[2] / "runtime" / "demo"
ROWS = (1, 8, 64, 256)

# Decode-step floors at a context of 1024, ms: bf16, fp8 weights, fp8 weights and KV.
FLOORS = {
    "qwen3-0.6b": ((0.297, 0.197, 0.184), (0.486, 0.386, 0.280), (2.00, 1.90, 1.05), (7.32, 7.19, 3.80)),
    "llama-3.1-8b": ((3.43, 1.85, 1.83), (3.65, 2.07, 1.95), (5.44, 3.87, 2.90), (13.2, 11.1, 7.22)),
}
PREDICTED = {
    (0, "qwen3-0.6b"): (1.08, 1.33, 3.32, 10.5),
    (1, "qwen3-0.6b"): (0.63, 0.85, 2.61, 8.94),
    (2, "qwen3-0.6b"): (0.50, 0.71, 2.43, 8.62),
    (3, "qwen3-0.6b"): (0.39, 0.60),
    (0, "llama-3.1-8b"): (4.68, 4.96, 7.35, 18.7),
    (1, "llama-3.1-8b"): (4.14, 4.39, 6.52, 16.9),
    (2, "llama-3.1-8b"): (3.95, 4.20, 6.28, 16.6),
    (3, "llama-3.1-8b"): (3.83, 4.08),
}


@pytest.mark.parametrize("name", FLOORS)
def test_floors_are_the_tables(name: str) -> None:
    for rows, row in zip(ROWS, FLOORS[name], strict=True):
        for precision, wanted in zip((BF16, FP8_WEIGHTS, FP8_WEIGHTS_AND_KV), row, strict=True):
            assert floor_ms(SHAPES[name], rows, 1024, H200, precision) == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize(("stage", "name"), PREDICTED)
def test_predictions_are_the_tables(stage: int, name: str) -> None:
    for rows, wanted in zip(ROWS, PREDICTED[stage, name], strict=False):
        assert predicted_ms(SHAPES[name], rows, 1024, STAGES[stage]) == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize(("stage", "small", "large"), [(1, 0.52, 2.39), (2, 0.39, 2.22), (3, 0.28, 2.10)])
def test_fp8_weights_are_the_tables(stage: int, small: float, large: float) -> None:
    assert predicted_ms(SMALL, 1, 1024, STAGES[stage], FP8_WEIGHTS) == pytest.approx(small, rel=0.02)
    assert predicted_ms(LARGE, 1, 1024, STAGES[stage], FP8_WEIGHTS) == pytest.approx(large, rel=0.02)


@pytest.mark.parametrize(
    ("tokens", "small", "large"), [(128, 0.27, 3.4), (512, 0.70, 9.6), (2048, 3.2, 39), (8192, 22, 177)]
)
def test_prefill_floors_are_the_tables(tokens: int, small: float, large: float) -> None:
    assert prefill_floor_ms(SMALL, tokens) == pytest.approx(small, rel=0.02)
    assert prefill_floor_ms(LARGE, tokens) == pytest.approx(large, rel=0.02)


def test_weights_and_kv_are_counted() -> None:
    head = 2 * SMALL.vocab * SMALL.hidden
    assert 2 * SMALL.layer_weights + head == pytest.approx(1.192e9, rel=0.001)
    assert 2 * LARGE.layer_weights + 2 * LARGE.vocab * LARGE.hidden == pytest.approx(15.01e9, rel=0.001)
    assert (2 * SMALL.kv_token, 2 * LARGE.kv_token) == (114_688, 131_072)


@pytest.mark.parametrize("precision", [BF16, FP32, FP8_WEIGHTS, FP8_WEIGHTS_AND_KV])
@pytest.mark.parametrize("stage", STAGES)
def test_no_prediction_is_below_its_floor(stage: int, precision: Precision) -> None:
    machine = STAGES[stage]
    for shape in SHAPES.values():
        for rows in (1, 3, 64, 175, 256):
            for work in (Work(rows, 100), Work(rows, 3000, 512, triangle(0, 512), 1)):
                floor = work_floor_ms(shape, work, machine, precision)
                assert floor < work_ms(shape, work, machine, precision)


def test_more_work_never_takes_less_time() -> None:
    times = [predicted_ms(SMALL, rows, 1024) for rows in range(1, 300)]
    assert times == sorted(times)
    halves = triangle(0, 512) + triangle(512, 1024)
    assert halves == triangle(0, 1024), "a prompt in two chunks attends to the same pairs"


def test_the_shape_of_a_folder() -> None:
    shape = shape_of(read_model_config(DEMO), "demo")
    assert shape.name == "demo" and shape.layers > 0
    assert floor_ms(shape, 1, 64, H200, FP32) > floor_ms(shape, 1, 64, H200, BF16) > 0


def test_percent_of_floor_and_roof() -> None:
    assert percent_of_floor(2.0, 2.0) == 100.0
    assert percent_of_floor(2.0, 4.0) == 50.0
    assert roof_s(4.424e12, 1, H200) == pytest.approx(1.0)
    assert roof_s(1, 775e12, H200) == pytest.approx(1.0)


def measured_by(machine: Machine, shapes: tuple[str, ...] = tuple(SHAPES)) -> list[dict[str, object]]:
    """Results as the benches write them, from a machine that is exactly as the model says."""
    return [
        {
            "bench": "step",
            "shape": dataclasses.asdict(SHAPES[name]),
            "precision": dataclasses.asdict(BF16),
            "sweep": [
                {
                    "rows": rows,
                    "context": context,
                    "step_ms": predicted_ms(SHAPES[name], rows, context, machine),
                }
                for rows in (1, 2, 8, 32, 64, 128, 256)
                for context in (128, 1024, 4096)
            ],
        }
        for name in shapes
    ]


def test_refit_finds_another_machine_again() -> None:
    other = dataclasses.replace(
        H200, weight_efficiency=0.80, kv_efficiency=0.70, node_s=3.0e-6, attention_flops=400e12
    )
    results = measured_by(other)
    found = refit(results, H200)
    assert found.weight_efficiency == pytest.approx(0.80, rel=0.02)
    assert found.kv_efficiency == pytest.approx(0.70, rel=0.02)
    assert found.node_s == pytest.approx(3.0e-6, rel=0.05)
    assert all(abs(ratio - 1) < 0.02 for _, ratio in residuals(results, found))
    assert max(abs(ratio - 1) for _, ratio in residuals(results, H200)) > 0.15


def test_refit_keeps_what_the_measurements_leave_open() -> None:
    found = refit(measured_by(H200, ("llama-3.1-8b",)), H200)
    assert found.attention_flops == H200.attention_flops, "no chunk was measured"
    for field in ("weight_efficiency", "kv_efficiency", "node_s", "step_s"):
        assert getattr(found, field) == pytest.approx(getattr(H200, field), rel=1e-6)


def test_kernels_count_as_weights_or_as_kv() -> None:
    result = {
        "bench": "kernels",
        "cases": [
            {"op": "linear", "name": "a", "bytes": 1 << 30, "flops": 0, "kernel_us": 300.0},
            {"op": "decode_attention", "name": "b", "bytes": 1 << 30, "flops": 0, "kernel_us": 400.0},
            {"op": "decode_attention", "name": "unrun", "bytes": 1, "flops": 0, "kernel_us": None},
        ],
    }
    assert [item.name for item in observations([result])] == ["linear: a", "decode_attention: b"]
    found = refit([result] * 20, H200)
    assert found.weight_efficiency == pytest.approx((1 << 30) / 298e-6 / H200.read_bytes, rel=0.02)
    assert found.kv_efficiency == pytest.approx((1 << 30) / 398e-6 / H200.read_bytes, rel=0.02)


def test_results_without_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match="front"):
        refit([{"bench": "front"}])
    with pytest.raises(ValueError, match="no measurement"):
        refit([])
