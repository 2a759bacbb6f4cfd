"""The bench of the host runs, tells every part of a step, and its last line is its result."""

from __future__ import annotations

import json

import pytest

from headrace.bench import host
from headrace.bench.instant import Vocabulary
from headrace.runtime.text import Cutter


def test_the_last_line_is_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        host.main(["--streams", "3", "--kinds", "ws,ws16,steps,steps16,responses,chat", "--steps", "5"]) == 0
    )
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert [(row["kind"], row["connections"]) for row in result["rows"]] == [
        ("ws", 3),
        ("ws16", 1),
        ("steps", 3),
        ("steps16", 1),
        ("responses", 3),
        ("chat", 3),
    ]
    size = {row["kind"]: row["bytes_per_token"] for row in result["rows"]}
    assert size["steps16"] > size["ws16"] + 90 and size["steps"] > size["ws"] + 200, "each step is told"
    for row in result["rows"]:
        assert row["cpu_us_p50"] > 0
        assert list(row["parts_us_p50"]) == list(host.PARTS)
        assert row["bytes_per_token"] > 100, "every token is an event of its own"


def test_the_vocabulary_is_text_cut_anywhere() -> None:
    vocabulary = Vocabulary()
    assert max(map(len, vocabulary.pieces)) < 16
    text = b"".join(vocabulary.pieces).decode()
    cutter = Cutter(vocabulary.text)
    assert "".join(map(cutter.push, range(len(vocabulary.pieces)))) + cutter.finish() == text
