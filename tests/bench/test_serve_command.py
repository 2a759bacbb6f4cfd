"""`headrace bench serve` against the real faces (with the fake engine) and against a server of another kind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench_null import FAST
from live_server import LiveServer

from headrace.bench import serve
from headrace.bench.null_server import NullServer, Script

SMALL = ["--workload", "c2_30_6", "--requests", "4", "--no-calibration"]


@pytest.fixture(scope="module")
def live() -> Iterator[LiveServer]:
    server = LiveServer()
    yield server
    server.stop()


def result_of(capsys: pytest.CaptureFixture[str]) -> tuple[str, dict[str, Any]]:
    said = capsys.readouterr().out
    return said, json.loads(said.strip().splitlines()[-1])


def test_all_transports_of_headrace(
    live: LiveServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    spoken = ["ws-responses", "ws-responses-lanes", "sse-responses", "sse-chat", "sse-completions"]
    flags = [flag for transport in spoken for flag in ("--transport", transport)]
    files = ["--out", str(tmp_path / "out.json"), "--html", str(tmp_path / "out.html")]
    status = serve.main([live.url, *SMALL, *flags, "--repeats", "2", "--workers", "2", *files])
    said, document = result_of(capsys)
    live.baseline()
    assert document == json.loads((tmp_path / "out.json").read_text())
    assert [result["transport"] for result in document["results"]] == spoken
    page = (tmp_path / "out.html").read_text()
    assert status == any(result["refused"] is not None for result in document["results"])
    for result in document["results"]:
        if result["refused"] is not None:  # a machine that is busy enough for that
            assert "the client was the bottleneck" in result["refused"]
            continue
        assert result["valid"]
        assert (result["completed"], result["failed"], result["miscounted"], result["unverified"]) == (
            8,
            0,
            0,
            0,
        )
        assert result["total_output_tokens"] == 4 * 6, "the median over the repeats"
        assert result["seeds"][1] == result["seeds"][0] + 1 and len(result["repeats"]) == 2
        assert result["transport"] in said and result["transport"] in page
        kind = "ids" if result["transport"] == "sse-completions" else "words"
        assert result["settings"]["prompt"] == kind and result["split"]["request"]["count"] == 8
    seeds = [seed for result in document["results"] for seed in result["seeds"]]
    assert len(set(seeds)) == len(seeds), "no prompt is sent twice"


def test_a_transport_that_a_server_does_not_speak_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--transport", "sse-completions", "--transport", "sse-chat"]
    with NullServer(Script(first_s=0.0, gap_s=0.0005, rejects=("prompt",))) as other:
        assert serve.main([other.url, *SMALL, *flags, "--repeats", "1"]) == 1
    said, document = result_of(capsys)
    (missing,) = document["not_measured"]
    assert missing["transport"] == "sse-completions" and missing["error"].startswith("HTTP 422")
    assert "not measured: HTTP 422" in said and [r["transport"] for r in document["results"]] == ["sse-chat"]


def test_two_servers_in_turns(live: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    with NullServer(FAST) as other:
        flags = ["--against", other.url, "--against-label", "null", "--label", "own", "--repeats", "2"]
        serve.main([live.url, *SMALL, *flags, "--goodput", "ttft=60000,tpot=60000"])
        entries = other.log().entries
    said, document = result_of(capsys)
    assert [result["label"] for result in document["results"]] == ["own", "null"]
    for result in document["results"]:
        assert result["refused"] is not None or result["completed"] == 8
    if all(result["refused"] is None for result in document["results"]):
        (comparison,) = document["comparisons"]
        assert (comparison["base"], comparison["other"]) == ("own", "null")
        assert len(comparison["ratios"]["median_ttft_ms"]["repeats"]) == 2 and "null / own" in said
        assert document["results"][0]["request_goodput"] > 0
    # Both were asked the same; the probes came first: two questions, then warm-up and two repeats of four.
    assert len(entries) == 2 + 3 * 4 and entries[0].received_ns < entries[-1].received_ns


def test_servers_that_are_compared_are_asked_alike(
    live: LiveServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with NullServer(Script(first_s=0.0, gap_s=0.0005, rejects=("ignore_eos",))) as other:
        serve.main([live.url, *SMALL, "--against", other.url, "--repeats", "1", "--no-warmup"])
    said, document = result_of(capsys)
    assert [result["manner"]["ignore_eos"] for result in document["results"]] == [False, False]
    assert "asked without ignore_eos, as the server that it is compared with" in said


def test_several_workloads_make_a_curve(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "curve.html"
    loads = ["--workload", "c1_9_3", "--workload", "c3_9_3", "--requests", "3", "--no-calibration"]
    with NullServer(FAST) as server:
        serve.main([server.url, *loads, "--transport", "sse-chat", "--repeats", "1", "--html", str(page)])
        prompts = [entry.prompt for entry in server.log().entries]
    _, document = result_of(capsys)
    assert [result["workload"] for result in document["results"]] == ["c1_9_3", "c3_9_3"]
    assert document["comparisons"] == [] and len(set(prompts)) == len(prompts) == 2 + 2 * 2 * 3
    if all(result["refused"] is None for result in document["results"]):
        assert "c1_9_3" in page.read_text() and "c3_9_3" in page.read_text()


def test_completions_of_another_server_carry_ids(capsys: pytest.CaptureFixture[str]) -> None:
    with NullServer(FAST) as server:
        flags = ["--transport", "sse-completions", "--repeats", "1", "--no-warmup"]
        serve.main([server.url, *SMALL, *flags])
        entries = server.log().entries
    _, document = result_of(capsys)
    assert document["results"][0]["settings"]["prompt"] == "ids"
    assert [entry.prompt for entry in entries[2:]] == ["30 ids"] * 4


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--prompt", "ids"], "carries text, no token ids"),
        (["--workload", "c2_30"], "no workload 'c2_30'"),
        (["--rate", "5"], "has no use for rate"),
        (["--file", "/nowhere.jsonl"], "/nowhere.jsonl"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_is_measured(
    flags: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with NullServer(FAST) as server:
        assert serve.main([server.url, "--workload", "c2_30_6", "--no-calibration", *flags]) == 1
        assert len(server.log().entries) <= 4, "the probes alone"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [["--repeats", "0"], ["--goodput", "speed=3"], ["--fields", "[]"], ["--cores", "a"], ["--lanes", "99"]],
)
def test_a_wrong_command_is_explained(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        serve.main(["http://127.0.0.1:1", *flags])
    assert ended.value.code == 2 and "usage:" in capsys.readouterr().err


def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert serve.main(["http://127.0.0.1:1"]) == 1
    assert "no answer from 127.0.0.1:1" in capsys.readouterr().err


def test_every_setting_has_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        serve.main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "--input-tokens" in said and "--typing-rate" in said and "examples:" in said
