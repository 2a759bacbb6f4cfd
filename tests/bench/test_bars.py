"""Results beside their bars: which numbers are taken, and what counts as met, missed and not run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headrace.bench.bars import BARS, compare, main


def load_run(model: str, workload: str, transport: str = "ws-responses", **numbers: Any) -> dict[str, Any]:
    result = {"model": model, "workload": workload, "transport": transport, "refused": None, "problems": []}
    return {"bench": "serve", "results": [result | numbers]}


def rows_of(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["label"]: row for row in compare([document]) if row["met"] != "not run"}


@pytest.mark.parametrize(("tpot", "met"), [(0.3, "aim"), (0.48, "aim"), (0.7, "must"), (0.71, "MISS")])
def test_times_are_better_when_less(tpot: float, met: str) -> None:
    rows = rows_of(load_run("qwen3-0.6b", "single_128_256", median_tpot_ms=tpot, median_ttft_ms=1.0))
    assert rows["TPOT p50"]["met"] == met and rows["TPOT p50"]["measured"] == tpot
    assert rows["TTFT p50"]["met"] == "aim"


@pytest.mark.parametrize(("rate", "met"), [(8500, "must"), (8499, "MISS"), (10_000, "aim")])
def test_rates_are_better_when_more(rate: float, met: str) -> None:
    rows = rows_of(load_run("qwen3-0.6b", "c8_512_256", output_throughput=rate))
    assert rows["output"]["met"] == met


def test_parts_of_a_run_have_bars_of_their_own() -> None:
    parts = {"decode": {"p99_itl_ms": 11.0, "max_itl_ms": 26.0}, "long": {"median_ttft_ms": 300.0}}
    rows = rows_of(load_run("llama-3.1-8b", "interfere", parts=parts))
    assert {label: row["met"] for label, row in rows.items()} == {
        "decode ITL p99": "aim",
        "decode ITL max": "MISS",
        "long TTFT p50": "must",
    }


def test_a_start_is_measured_by_its_later_repeats() -> None:
    document = {"bench": "start", "model": "/tmp/qwen3-0.6b", "median_of_later": {"first_token_s": 9.0}}
    assert rows_of(document)["exec to first token"]["met"] == "must"


def test_a_number_that_is_missing_is_a_miss_and_trouble_is_told() -> None:
    document = load_run(
        "qwen3-0.6b", "c8_512_256", output_throughput=None, failed=3, problems=["busy client"]
    )
    row = rows_of(document)["output"]
    assert row["met"] == "MISS" and row["trouble"] == ["busy client", "3 failed"]
    assert rows_of(load_run("tiny", "c8_512_256", output_throughput=1.0)) == {}


def test_every_bar_has_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(load_run("qwen3-0.6b", "c8_512_256", output_throughput=9000.0)))
    assert main([str(path), "--out", str(tmp_path / "bars.json")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len([line for line in said if line.endswith("not run")]) == len(BARS) - 1
    assert json.loads((tmp_path / "bars.json").read_text()) == json.loads(said[-1])
    assert main([str(path), "--measured"]) == 0
    assert "not run" not in capsys.readouterr().out
    path.write_text(json.dumps(load_run("qwen3-0.6b", "c8_512_256", output_throughput=10.0)))
    assert main([str(path)]) == 1


def test_a_model_that_results_call_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(load_run("m06", "c8_512_256", output_throughput=10.0)))
    assert main([str(path), "--measured"]) == 0, "nobody has a bar for m06"
    assert main([str(path), "--measured", "--alias", "m06=qwen3-0.6b"]) == 1
    assert "MISS" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([str(path), "--alias", "m06"])
