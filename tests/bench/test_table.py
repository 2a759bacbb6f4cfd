from __future__ import annotations

import io
from typing import Any

from bench_runs import run, trace

from headrace.bench import table
from headrace.bench.metrics import Bounds, compare, summarise


def summary(**fields: Any) -> dict[str, Any]:
    runs = [
        run([trace(0, 0, [30 + repeat, 40 + repeat, (50 + repeat, 2)], split={"queue": 0.0025})])
        for repeat in range(3)
    ]
    return summarise(runs, Bounds(ttft_ms=31)) | fields


def line_of(text: str, begin: str) -> str:
    [line] = [line for line in text.splitlines() if line.startswith(begin)]
    return line


def test_the_table_tells_latency_rates_and_spread() -> None:
    text = table.render(summary(server="headrace", workload="single_1_4", seed=7))
    assert text.splitlines()[0] == "headrace · single_1_4 · sse-chat"
    assert "seed 7" in text.splitlines()[1] and "3 requests in 3 repeats" in text.splitlines()[1]
    assert line_of(text, "TTFT ").split() == ["TTFT", *["31.0"] * 4, "32.0", "31.0", "30.0", "to", "32.0"]
    assert line_of(text, "ITL").split()[1:2] == ["10.0"]
    assert line_of(text, "longest gap").split()[2:6] == ["10.0", "10.0", "10.0", "10.0"]
    assert "25.0% merged" in line_of(text, "tokens")
    assert "queue 2.50 (p99 2.50)" in line_of(text, "server")
    assert line_of(text, "goodput").split()[1:3] == ["19.6", "per"]
    assert "10% CPU" in line_of(text, "client")
    assert "FAILED" not in text and "NOT VALID" not in text and "\033" not in text


def test_the_table_has_a_block_per_part() -> None:
    text = table.render(
        summarise([run([trace(0, 0, [1, 2], part="decode"), trace(1, 0, [9, 10], part="long")])], Bounds())
    )
    assert [line for line in text.splitlines() if line in ("decode", "long", "all parts")] == [
        "decode",
        "long",
        "all parts",
    ]
    assert text.count("TTFT ") == 2


def test_what_spoils_the_result_is_said_last_and_in_red() -> None:
    traces = [trace(0, 0, [1, 2]), trace(1, 0, [1, 2], output_tokens=3), trace(2, 0, [], error="HTTP 500")]
    found = summarise([run(traces)], Bounds())
    lines = table.render(found).splitlines()
    assert lines[-4] == "2 of 3 requests FAILED:"
    assert lines[-1].startswith("NOT VALID: 1 answers have other token counts")
    assert any("1 x HTTP 500 (request 2)" in line for line in lines)
    assert table.render(found, color=True).splitlines()[-1].startswith("\033[31mNOT VALID")


def test_a_result_without_any_answer_still_makes_a_table() -> None:
    text = table.render(summarise([run([trace(0, 0, [], error="refused", ended=5)])], Bounds()))
    assert "–" in line_of(text, "ITL")
    assert "NOT VALID: no request succeeded" in text


def test_notes_about_early_ends_and_missing_usage() -> None:
    text = table.render(
        summarise([run([trace(0, 0, [1, 2], wanted_tokens=9, output_tokens=None)])], Bounds())
    )
    assert "1 answers ended before the wanted number of tokens" in text
    assert "without usage" in text


def test_numbers_have_three_digits() -> None:
    values = (None, 0.0, 0.1234, 1.5, 12.34, 123.4, 12345.6)
    assert [table.number(value) for value in values] == ["–", "0.00", "0.12", "1.50", "12.3", "123", "12,346"]


def test_a_comparison_colours_what_all_repeats_agree_on() -> None:
    slow = summarise([run([trace(0, 0, [10, 20 + drift])]) for drift in (0, 1)], Bounds())
    fast = summarise([run([trace(0, 0, [5, 20 + drift])]) for drift in (1, 0)], Bounds())
    text = table.render_comparison(["base", "new"], compare(slow, fast), color=True)
    assert "new / base" in text
    ttft = line_of(text, "  median_ttft_ms")
    assert "0.500x" in ttft and "\033[32m" in ttft
    assert "\033[31m" in line_of(text, "  median_itl_ms")  # larger gaps, in both repeats
    assert "\033" not in line_of(text, "  output_throughput")  # 20/21 in one repeat, 21/20 in the other


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_progress_on_a_terminal_is_one_line() -> None:
    out, clock = Terminal(), Clock()
    bar = table.Progress(200, "c8", out=out, clock=clock)
    for done in range(0, 201, 10):
        clock.now += 0.0625
        bar.update(done, done * 10, failed=done // 150)
    bar.close()
    said = out.getvalue()
    assert said.count("\n") == 1 and said.endswith("\n")
    assert said.count("\r") == 11  # at most every 0.1 s, and once at the end
    last = said.rpartition("\r")[2]
    assert last.startswith("c8 " + "█" * 24 + " 100% 200/200 requests, 1,524 tokens/s, 1 FAILED")


def test_progress_elsewhere_is_a_line_now_and_then() -> None:
    out, clock = io.StringIO(), Clock()
    bar = table.Progress(30, unit="s", out=out, clock=clock)
    for second in range(1, 26):
        clock.now += 1
        bar.update(second, second)
    bar.close()
    lines = out.getvalue().splitlines()
    assert len(lines) == 3 and "\r" not in out.getvalue()
    assert "33% 10/30 s, 1.00 tokens/s" in lines[0] and "83% 25/30 s" in lines[-1]


def test_progress_that_never_started_says_nothing() -> None:
    out = io.StringIO()
    table.Progress(0, out=out).close()
    assert out.getvalue() == ""
