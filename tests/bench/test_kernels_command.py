"""`headrace bench kernels` finds the kernels by itself and tells of each what it must."""

from __future__ import annotations

import json
import math
import pkgutil

import pytest
import torch

import headrace.kernels
from headrace.bench import kernels
from headrace.bench.machine import ON_CPU, time_calls
from headrace.bench.step_model import roof_s
from headrace.kernels import cases
from headrace.kernels.cases import Case

CPU = torch.device("cpu")
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda") if ON_GPU else CPU


@pytest.fixture
def warm_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """One input set per case: what is timed does not matter here, and a cold cache costs half a gigabyte."""
    monkeypatch.setattr(cases, "COLD_BYTES", 1)


def test_every_module_with_cases_is_found() -> None:
    found = kernels.kernel_modules()
    assert found, "kernels with cases exist"
    everywhere = {entry.name for entry in pkgutil.iter_modules(headrace.kernels.__path__)}
    assert set(found) <= everywhere
    assert not set(kernels.untimed(list(found))) & set(found)


def test_an_op_without_cases_is_named() -> None:
    # Every module with cases belongs to an op with a twin; take one away, and it must be missed.
    found = kernels.kernel_modules()
    missed = kernels.untimed([])
    assert "reference" not in missed
    assert any(name in missed for name in found)


@pytest.mark.usefixtures("warm_inputs")
def test_first_cases_are_sound() -> None:
    """They run where the bench runs them, and their numbers are finite."""
    for op, module in kernels.kernel_modules().items():
        case = next(iter(module.bench_cases(DEVICE, torch.float32)))
        assert case.name and case.bytes > 0, op
        for side in (case.twin, case.peer):
            told = None if side is None else side(case.sets - 1)
            assert told is None or not told.is_floating_point() or bool(told.isfinite().all()), (
                op,
                case.name,
            )


def made_case(**changed: object) -> Case:
    x = torch.randn(4, 8, device=DEVICE)
    parts = {
        "name": "made rows=4",
        "run": lambda number: x * 2,
        "twin": lambda number: x + x,
        "peer": None,
        "bytes": 2 * x.numel() * 4,
        "flops": x.numel(),
        "sets": 2,
    }
    return Case(**{**parts, **changed})  # type: ignore[arg-type]


def test_a_row_holds_times_rates_and_floor() -> None:
    row = kernels.measure_case("double", made_case(), DEVICE, ON_CPU, 4, 0.0)
    assert (row["op"], row["rows"], row["sets"], row["peer_us"]) == ("double", 4, 2, None)
    assert row["floor_us"] == pytest.approx(1e6 * roof_s(256, 32, ON_CPU, 4))
    assert row["twin_gb_s"] == pytest.approx(256 / row["twin_us"] / 1e3, abs=0.01)
    assert row["twin_pct_of_floor"] == pytest.approx(100 * row["floor_us"] / row["twin_us"], abs=0.01)
    if ON_GPU:
        assert row["trouble"] is None and row["kernel_us"] > 0 and row["error"] == 0.0
    else:
        assert row["trouble"] == kernels.NO_GPU and row["kernel_us"] is None


def test_a_broken_kernel_is_told_and_the_others_go_on() -> None:
    def broken(number: int) -> torch.Tensor:
        raise RuntimeError("no such tile")

    row = kernels.measure_case("double", made_case(run=broken), DEVICE, ON_CPU, 4, 0.0)
    # Without a GPU no kernel is launched, broken or not; the twin is timed either way.
    assert row["trouble"] == ("RuntimeError: no such tile" if ON_GPU else kernels.NO_GPU)
    assert row["twin_us"] > 0


def test_distance_sees_errors_and_nan() -> None:
    x = torch.tensor([3.0, 4.0])
    assert kernels.distance(x, x) == 0.0
    assert kernels.distance(torch.tensor([3.0, 4.5]), x) == pytest.approx(0.1)
    assert math.isnan(kernels.distance(torch.tensor([3.0, math.nan]), x) or 0.0)
    assert kernels.distance(None, x) is None


def test_calls_rotate_over_the_sets() -> None:
    asked: list[int] = []
    times = time_calls(asked.append, 3, 0.0)
    assert len(times) == 3 and asked == [0, 1, 2, 0], "one before that does not count"


def test_sets_keep_weights_cold() -> None:
    assert cases.sets_for(0) == 1
    assert cases.sets_for(cases.COLD_BYTES) == 1
    assert cases.sets_for(cases.COLD_BYTES // 4) == 4
    assert cases.sets_for(1) == cases.MOST_SETS


@pytest.mark.usefixtures("warm_inputs")
def test_the_last_line_is_the_result(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "machine_of", lambda device, threads: ON_CPU)
    assert kernels.main(["--ops", "norm", "--most", "1", "--seconds", "0", "--threads", "1"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    result = json.loads(lines[-1])
    assert result["bench"] == "kernels" and len(result["cases"]) == 1
    assert {"date", "git_rev", "torch", "cores"} <= set(result["machine"])
    assert result["cases"][0]["op"] == "norm"
    if not ON_GPU:
        assert any("no GPU here" in line for line in lines)


def test_unknown_kernels_are_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        kernels.main(["--ops", "norm,levitate"])
    assert refused.value.code == 2
    assert "levitate" in capsys.readouterr().err
