"""`headrace bench model` prints what the step model says, and fits it to results that the benches wrote."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from headrace.bench import model
from headrace.bench.step_model import BF16, H200, SHAPES, predicted_ms


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
