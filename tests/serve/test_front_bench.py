"""The bench of the front runs and its last line is its result."""

from __future__ import annotations

import json

import pytest

from headrace.bench import front


def test_the_last_line_is_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    assert front.main(["--sockets", "3", "--rounds", "5"]) == 0
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert [row["kind"] for row in result["rows"]] == ["websocket", "library frames", "SSE"]
    for row in result["rows"]:
        assert row["sockets"] == 3 and row["writes_per_flush"] == 1.0, "one write per connection per flush"
    assert result["rows"][0]["bytes_per_frame"] == result["rows"][1]["bytes_per_frame"] == 204
