from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from bench_runs import run, trace
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.bench import plot, report
from headrace.bench.metrics import Bounds, summarise


def document(speed: float = 1.0, **fields: Any) -> dict[str, Any]:
    traces = []
    for number in range(12):
        sent = number * 50.0
        first, second, pair, last = (sent + speed * (at + number) for at in (20, 25, 31, 40))
        traces.append(trace(number, sent, [first, second, (pair, 2), last]))
    return (
        summarise([run(traces), run(traces)], Bounds())
        | {"server": "headrace", "workload": "c1_8_5"}
        | fields
    )


class Page(HTMLParser):
    """Checks that elements nest, and collects what a test asks about."""

    VOID = ("meta", "br", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def classes(self, tag: str) -> set[str]:
        return {name for own, attrs in self.tags if own == tag for name in (attrs.get("class") or "").split()}


def test_the_report_holds_every_series_and_asks_no_host() -> None:
    documents = [
        document(workload=workload, server=server, speed=speed)
        for server, speed in (("headrace", 1.0), ("peer", 2.5))
        for workload in ("c1_8_5", "c4_8_5")
    ]
    text = report.html_of(documents)
    page = Page(text)
    names = [f"{server} · {workload}" for server in ("headrace", "peer") for workload in ("c1_8_5", "c4_8_5")]
    for name in names:
        assert name in page.texts["th"]
        assert name in page.texts["li"]
        # A line in each of the four distributions.
        assert page.texts["title"].count(name) == 4
    assert not re.search(r"(https?:)?//", text), "a report must not name any host"
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert "url(" not in text and "@import" not in text
    assert any("default-src 'none'" in (attrs.get("content") or "") for _, attrs in page.tags)


def test_servers_have_colours_and_workloads_dashes() -> None:
    documents = [
        document(workload=workload, server=server)
        for server in ("a", "b")
        for workload in ("c1_8_5", "c4_8_5")
    ]
    styles = [line.style for line in report.series_of(documents, report.names_of(documents))]
    assert styles == ["s0 d0", "s0 d1", "s1 d0", "s1 d1"]
    alone = [document(workload=workload) for workload in ("c1_8_5", "c4_8_5")]
    assert [line.style for line in report.series_of(alone, report.names_of(alone))] == ["s0 d0", "s1 d0"]


def test_throughput_curves_need_two_results_of_one_server() -> None:
    assert "Throughput against latency" not in report.html_of([document(), document(server="peer")])
    both = report.html_of([document(), document(workload="c4_8_5")])
    assert "Throughput against latency" in both


def test_parts_are_series_and_rows_of_their_own() -> None:
    traces = [trace(n, 0, [5 + n, 9 + n, 14 + n], part="decode" if n % 2 else "long") for n in range(6)]
    text = report.html_of(
        [summarise([run(traces)], Bounds()) | {"server": "headrace", "workload": "interfere"}]
    )
    page = Page(text)
    for part in ("decode", "long"):
        name = f"headrace · interfere · sse-chat · {part}"
        assert name in page.texts["th"] and name in page.texts["li"]
    assert {"s0", "s1"} <= page.classes("path")


def test_what_failed_is_said() -> None:
    traces = [
        trace(0, 0, [1, 2, 3]),
        trace(1, 0, [1, 2], output_tokens=9),
        trace(2, 0, [], error="<b>500</b>"),
    ]
    text = report.html_of([summarise([run(traces)], Bounds()) | {"server": "headrace"}])
    assert "2 of 3" in text
    assert "1 requests failed: &lt;b&gt;500&lt;/b&gt;" in text and "<b>500" not in text
    assert "not valid: 1 answers have other token counts" in text


@pytest.mark.parametrize(
    "traces",
    [
        [trace(0, 0, [], error="refused", ended=5)],
        [trace(0, 0, [5])],
        [trace(0, 0, [(5, 7)])],
        [trace(0, 0, [5, 5, 5])],
        [trace(0, 0, [0.0, 1.0])],
        [trace(0, 0, [0.0]), trace(1, 0, [0.0])],
    ],
)
def test_a_report_of_next_to_nothing_is_a_page(traces: list[Any]) -> None:
    Page(report.html_of([summarise([run(traces)], Bounds())]))


def test_a_report_needs_a_document() -> None:
    with pytest.raises(ValueError, match="at least one"):
        report.html_of([])


def test_names_say_what_differs_and_are_never_the_same() -> None:
    same = document()
    assert report.names_of([same, same]) == ["headrace (1)", "headrace (2)"]
    assert report.names_of([document(), document(transport="sse-completions", label="tuned")]) == [
        "headrace · sse-chat",
        "tuned · sse-completions",
    ]


def test_curves_end_where_the_samples_do() -> None:
    samples = summarise([run([trace(n, 0, [5.0 + n]) for n in range(10)])], Bounds())["samples"]
    curve = report.curve_of(samples["parts"]["main"] | {"probabilities": samples["probabilities"]}, "ttft_ms")
    assert curve[0] == (0.0, 5.0)
    assert curve[-1] == (0.9, 14.0)
    assert all(share < 0.9 for share, _ in curve[:-1])
    assert [value for _, value in curve] == sorted(value for _, value in curve)


def test_zero_gaps_of_merged_tokens_stand_at_the_least_gap() -> None:
    samples = summarise([run([trace(0, 0, [(5, 3), (9, 1), (14, 1)])])], Bounds())["samples"]
    curve = report.curve_of(samples["parts"]["main"] | {"probabilities": samples["probabilities"]}, "itl_ms")
    assert min(value for _, value in curve) > 0
    assert curve[-1] == (0.75, 5.0)


def test_the_command_rebuilds_the_page_from_json_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, several, log = tmp_path / "one.json", tmp_path / "several.json", tmp_path / "run.log"
    out = tmp_path / "out.html"
    one.write_text(json.dumps(document(server="one")))
    several.write_text(json.dumps({"results": [document(server="two"), document(server="three")]}, indent=2))
    log.write_text("a table for people\n" + json.dumps(document(server="four")) + "\n")
    assert report.main([str(one), str(several), str(log), "--html", str(out)]) == 0
    page = Page(out.read_text())
    assert {"one", "two", "three", "four"} <= set(page.texts["th"])
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said == {"bench": "report", "html": str(out), "results": 4}


@pytest.mark.parametrize("content", ["", "[1]", '{"bench": "step"}', "no json", "\udcff"])
def test_the_command_refuses_other_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    file = tmp_path / "other.json"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert report.main([str(file), "--html", str(tmp_path / "out.html")]) == 2
    assert "other.json" in capsys.readouterr().err
    assert not (tmp_path / "out.html").exists()


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(tmp_path / "gone.json"), "--html", str(tmp_path / "out.html")]) == 2
    assert "gone.json" in capsys.readouterr().err


@settings(deadline=None, derandomize=True)
@given(low=st.floats(1e-4, 1e5), ratio=st.floats(1, 1e6))
def test_log_axes_hold_their_data_between_round_ticks(low: float, ratio: float) -> None:
    high = low * ratio
    axis = plot.logarithmic("ms", low, high)
    assert axis.low <= low * 1.001 and axis.high >= high * 0.999 and axis.low < axis.high
    assert 2 <= len(axis.ticks) <= 14
    assert axis.place(axis.low) == 0 and axis.place(axis.high) == 1
    middle = axis.place(math.sqrt(axis.low * axis.high))
    assert middle == pytest.approx(0.5)


@settings(deadline=None, derandomize=True)
@given(low=st.floats(-1e6, 1e6), size=st.floats(0, 1e6))
def test_linear_axes_hold_their_data_between_round_ticks(low: float, size: float) -> None:
    axis = plot.linear("s", low, low + size)
    slack = 1e-6 * (axis.high - axis.low + abs(low))
    assert axis.low <= low + slack and axis.high >= low + size - slack
    assert 2 <= len(axis.ticks) <= 8
    assert axis.place((axis.low + axis.high) / 2) == pytest.approx(0.5)


def test_every_nine_takes_the_same_room() -> None:
    axis = plot.nines("share", 0.9999)
    places = [axis.place(share) for share in (0.0, 0.9, 0.99, 0.999, 0.9999)]
    assert places == pytest.approx([0, 0.25, 0.5, 0.75, 1])


def test_a_plot_puts_points_where_they_belong() -> None:
    picture = plot.Plot("p", plot.linear("x", 0, 10), plot.linear("y", 0, 10), width=114, height=104)
    # 50 pixels of width between 50 and 100, 50 of height between 12 and 62.
    assert picture.at((0, 0)) == (50, 62)
    assert picture.at((10, 10)) == (100, 12)
    assert picture.at((5, 5)) == (75, 37)
    assert picture.at((99, -4)) == (100, 62)
    picture.line([(0, 0), (10, 10)], "s0", "a <line>")
    picture.dots([(5, 5)], "s1", "dots")
    svg = picture.svg()
    assert 'class="line s0" d="M50.0 62.0L100.0 12.0"' in svg and "<title>a &lt;line&gt;</title>" in svg
    assert 'd="M75.0 37.0h0"' in svg
    Page(svg)
