"""`headrace bench model` prints what the step model says, and fits it to results that the benches wrote."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from headrace.bench import model
from headrace.bench.expectation import decode_work, expectation
from headrace.bench.step_model import BF16, H200, SHAPES, floor_ms, predicted_ms


def last(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_it_says_what_the_model_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert model.main(["--shape", "llama-3.1-8b", "--rows", "8", "--contexts", "1024"]) == 0
    result = last(capsys)
    step = predicted_ms(SHAPES["llama-3.1-8b"], 8, 1024)
    assert result["steps"] == [
        {
            "rows": 8,
            "context": 1024,
            "floor_ms": pytest.approx(3.65, rel=0.01),
            "predicted_ms": pytest.approx(step, rel=1e-4),
        }
    ]
    assert "c64_512_256" in result["targets"]


def test_it_reads_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(__file__).resolve().parents[2] / "runtime" / "demo"
    assert model.main(["--model", str(folder), "--precision", "float32"]) == 0
    assert last(capsys)["model"] == "demo"


def test_it_fits_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slow = dataclasses.replace(H200, weight_efficiency=0.6)
    result = {
        "bench": "step",
        "dtype": "bfloat16",
        "rates": {"read_gb_s": 4424.0, "tflops": 775.0},
        "shape": dataclasses.asdict(SHAPES["llama-3.1-8b"]),
        "precision": dataclasses.asdict(BF16),
        "sweep": [
            {"rows": rows, "context": 1024, "step_ms": predicted_ms(SHAPES["llama-3.1-8b"], rows, 1024, slow)}
            for rows in (1, 8, 64)
        ],
    }
    path = tmp_path / "step.json"
    path.write_text(json.dumps(result))
    assert (
        model.main(["--shape", "llama-3.1-8b", "--rows", "1", "--contexts", "1024", "--refit", str(path)])
        == 0
    )
    found = last(capsys)
    assert found["median_error"] < 0.02
    assert found["machine_model"]["weight_efficiency"] == pytest.approx(0.6, rel=0.05)


def load_run(**changed: object) -> dict[str, object]:
    settings = {"concurrency": 8, "requests": 24, "lengths": "exact", "turns": 1, "shared_prefix_tokens": 0}
    run = {
        "label": "headrace",
        "workload": "c8_512_256",
        "transport": "sse-chat",
        "completed": 24,
        "total_input_tokens": 24 * 512,
        "total_output_tokens": 24 * 256,
        "output_throughput": 10000.0,
        "median_tpot_ms": 0.8,
        "mean_tpot_ms": 0.8,
        "settings": settings,
        "server_flags": None,
    }
    return {**run, **changed}


def test_load_runs_get_their_floor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "serve.json"
    other = load_run(label="other")
    path.write_text(json.dumps({"bench": "serve", "results": [load_run(), other]}))
    given = ["--into", str(path), "--label", "headrace", "--server-flags", "serve --port 1"]
    assert model.main(given) == 0
    done, untouched = json.loads(path.read_text())["results"]
    assert untouched == other
    floor = floor_ms(SHAPES["qwen3-0.6b"], 8, 640)
    assert done["floor_ms"] == pytest.approx(floor, rel=1e-4)
    assert done["pct_of_floor"] == pytest.approx(100 * floor / 0.8, rel=1e-4)
    assert done["server_flags"] == "serve --port 1"
    assert done["predicted"]["tokens_per_s"] == pytest.approx(10_100, rel=0.08)
    assert "of the time per token" in capsys.readouterr().out


def test_an_open_loop_has_the_rows_that_its_rate_makes() -> None:
    run = load_run(workload="open_10rps_512_256", output_throughput=4000.0, mean_tpot_ms=2.0)
    assert decode_work(run).rows == 8
    assert "predicted" not in expectation(run, SHAPES["qwen3-0.6b"], H200, BF16)
    assert decode_work(load_run(workload="poisson", output_throughput=1.0)).rows == 1


def test_a_run_without_answers_has_no_floor() -> None:
    assert expectation(load_run(completed=0), SHAPES["qwen3-0.6b"], H200, BF16) == {}
