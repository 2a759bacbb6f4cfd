"""`headrace bench step` on a tiny model: every cell carries its floor, and refit reads what it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from headrace.bench import machine, step
from headrace.bench.machine import ON_CPU
from headrace.bench.step_model import refit

TINY = [
    "--shape",
    "tiny",
    "--device",
    "cpu",
    "--dtype",
    "float32",
    "--threads",
    "1",
    "--steps",
    "8",
    "--rounds",
    "1",
]


@pytest.fixture(autouse=True)
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rates of the machine take seconds to measure, and half a gigabyte."""
    monkeypatch.setattr(step, "machine_of", lambda device, threads: ON_CPU)


@pytest.fixture(autouse=True)
def own_threads() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_last_line_is_the_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "step.json"
    assert step.main([*TINY, "--rows", "2,1", "--contexts", "16,40", "--out", str(out)]) == 0
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert json.loads(out.read_text()) == result
    assert [(cell["rows"], cell["context"]) for cell in result["sweep"]] == [
        (1, 20.5),
        (2, 20.5),
        (1, 44.5),
        (2, 44.5),
    ]
    for cell in result["sweep"] + result["prompts"]:
        assert cell["floor_ms"] > 0 and cell["predicted_ms"] > 0 and cell["pct_of_floor"] > 0
    assert {"date", "git_rev", "torch", "cores", "threads"} <= set(result["machine"])
    assert result["rates"]["read_gb_s"] == round(ON_CPU.read_bytes / 1e9, 2)
    assert refit([result], ON_CPU).read_bytes == ON_CPU.read_bytes, "a measured rate is not moved"


def test_streams_run_through_the_scheduler(capsys: pytest.CaptureFixture[str]) -> None:
    given = [
        *TINY,
        "--rows",
        "1",
        "--contexts",
        "16",
        "--streams",
        "1,3",
        "--prompt",
        "12",
        "--tokens",
        "6",
        "--alone",
    ]
    assert step.main(given) == 0
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert set(result["cells"]) == {"headrace_1", "headrace_3"}
    for cell in result["cells"].values():
        assert cell["step_ms"] > 0 and cell["host_us_p50"] <= cell["host_us_p99"]
    assert "decode_tokens_per_s: headrace 3 over 1" in result["ratios"]


def test_what_does_not_fit_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert step.main([*TINY, "--rows", "1", "--contexts", "4090"]) == 0
    said = capsys.readouterr().out
    assert "left out: 4098 tokens, the engine has a context of 4096" in said
    assert "left_out" in json.loads(said.strip().splitlines()[-1])["sweep"][0]


@pytest.mark.parametrize("given", [["--rows", "0"], ["--contexts", "x"], ["--steps", "2"], ["--rounds", "0"]])
def test_wrong_numbers_are_refused(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        step.main(given)
    assert refused.value.code == 2
    assert given[0] in capsys.readouterr().err


def test_rates_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "READ_BYTES", 1 << 16)
    monkeypatch.setattr(machine, "PRODUCT", 32)
    rates = machine.measure_rates(torch.device("cpu"), 0.0)
    assert set(rates) == {"read", "2", "4"} and min(rates.values()) > 0
    made = machine.with_rates(ON_CPU, "made", rates)
    assert (made.name, made.read_bytes, made.flops[2]) == ("made", rates["read"], rates["2"])


def test_facts_name_the_place() -> None:
    facts = machine.facts_of_machine(3)
    assert facts["threads"] == 3 and facts["headrace"] and facts["python"]
