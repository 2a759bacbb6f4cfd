"""`headrace bench telemetry`: a server that tells the truth passes; a sum that is off by a microsecond does not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_server import LiveServer

from headrace.bench import telemetry


@pytest.fixture
def live() -> Iterator[LiveServer]:
    server = LiveServer()
    server.ask(lambda app: setattr(app.engine, "captured", frozenset({1, 2})))
    yield server
    server.stop()


def test_a_truthful_server_passes_and_the_last_line_is_the_result(
    live: LiveServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    options = ["--requests", "30", "--sockets", "3", "--tokens", "6", "--out", str(out)]
    assert telemetry.main([live.url, *options]) == 0
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert result == json.loads(out.read_text())
    assert result["answers"] == 30 and result["steps"] >= 60 and 0 < result["graph_hits"] < result["steps"]
    assert result["wrong"] == [] and result["beyond_ms"]["min"] > 0, (
        "the client's clock brackets the server's"
    )


def test_a_lie_is_found() -> None:
    step = {"type": "x.step", "step_id": 1, "step_ms": 2.0, "graph": "eager", "streams": [{"queue_ms": 1.0}]}
    told = {
        "queue_ms": 1.0,
        "prefill_ms": 2.0,
        "steps_ms": 0.0,
        "waited_ms": 0.0,
        "send_lag_ms": 0.5,
        "total_ms": 3.5,
    }

    def wrong(**changed: float) -> list[str]:
        books = telemetry.Books()
        response = {"id": "resp_1", "metadata": {"x_telemetry": json.dumps({**told, **changed})}}
        messages = [step, {"type": "response.completed", "response": response}]
        books.add(0, 4_000_000, [json.dumps(message, separators=(",", ":")).encode() for message in messages])
        return books.wrong

    assert wrong() == []
    assert len(wrong(queue_ms=1.001)) == 1, "it no longer adds up"
    assert len(wrong(queue_ms=1.001, total_ms=3.501)) == 1, "the steps say something else"


def test_a_server_that_is_not_there_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert telemetry.main(["https://127.0.0.1:1"]) == 2
    assert "headrace bench telemetry: " in capsys.readouterr().err
