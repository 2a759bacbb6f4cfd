"""`headrace bench added` over the real server: every token is found at every instant, and the books add up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace.bench import added


def test_every_token_has_its_instants(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "added.json"
    status = added.main(["--streams", "1,3", "--tokens", "24", "--repeats", "2", "--out", str(out)])
    assert status in (0, 1)  # over the bound is a result, and this machine may be busy
    result = json.loads(out.read_text())
    assert result == json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(cell["transport"], cell["streams"]) for cell in result["cells"]] == [
        ("websocket", 1),
        ("websocket", 3),
        ("sse", 1),
        ("sse", 3),
    ]
    for cell in result["cells"]:
        # Not every token completes a character, but most do.
        assert cell["streams"] * 24 < cell["tokens"] <= cell["streams"] * 48
        assert len(cell["cpus_busy_elsewhere"]) == 2
        assert 0 < cell["server_p50_ms"] <= cell["server_p999_ms"]
        assert 0 < cell["p50_ms"] <= cell["p90_ms"] <= cell["p99_ms"] <= cell["p999_ms"] <= cell["max_ms"]


def test_a_server_that_cannot_start_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="server process failed with status 1"):
        added.main([str(tmp_path / "nowhere"), "--repeats", "1"])
    assert "nowhere" in capfd.readouterr().err
