"""An HTML report with plots, made from the JSON of load runs alone: one file, no network, no script.

    headrace bench report A.json B.json --html out.html

Each document is a summary of `metrics.summarise` with what its bench knows beside it: `server` (the name of a line
in the throughput plot), `workload`, `model`, `transport`, `label` (in place of the server), `floor_ms`. A file
holds one document, a list of them, or an object whose `results` are one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from headrace.bench.page import figure, legend, page, section, series_class, sheet
from headrace.bench.plot import Plot, Point, escape, linear, logarithmic_over, nines
from headrace.bench.table import number

Document = dict[str, Any]
TITLE = "headrace bench"


class Series(NamedTuple):
    """One line of the distribution plots: a document, or one part of it."""

    name: str
    style: str
    samples: dict[str, Any]


def write_html(documents: Sequence[Document], path: Path | str) -> None:
    """Write the report of some documents, compared with one another. Raises ValueError if there are none."""
    Path(path).write_text(html_of(documents), encoding="utf-8")


def html_of(documents: Sequence[Document]) -> str:
    """The report as one HTML page."""
    if not documents:
        raise ValueError("a report needs at least one document")
    names = names_of(documents)
    lines = series_of(documents, names)
    blocks = [overview(documents), table_of(documents, names), *problems_of(documents, names)]
    if lines:
        blocks += [legend((line.style, line.name) for line in lines), distributions(documents, lines)]
    groups = by_server(documents, names)
    if any(len(members) > 1 for members in groups.values()):
        blocks.append(load_curves(groups))
    for document, name in zip(documents, names, strict=True):
        if document.get("samples"):
            blocks.append(course_of(document, name, lines))
    return page(TITLE, blocks)


def names_of(documents: Sequence[Document]) -> list[str]:
    """A name for each document: its label or server, and whatever of the rest tells it from the others."""

    def own(document: Document) -> str:
        return str(document.get("label") or document.get("server") or "server")

    differing = [
        key
        for key in ("model", "workload", "transport", "seed", "git_rev")
        if len({str(document.get(key)) for document in documents}) > 1
    ]
    if len(documents) == 1:
        differing = ["workload", "transport"]
    names = [
        " · ".join(
            [own(document), *(str(document[key]) for key in differing if document.get(key) is not None)]
        )
        for document in documents
    ]
    # The same run given twice still makes two lines.
    return [
        f"{name} ({names[: place + 1].count(name)})" if names.count(name) > 1 else name
        for place, name in enumerate(names)
    ]


def series_of(documents: Sequence[Document], names: Sequence[str]) -> list[Series]:
    """A colour for each server and dashes for what it was measured with; colours alone where that is enough."""
    found: list[tuple[str, str, dict[str, Any]]] = []
    for document, name in zip(documents, names, strict=True):
        parts = (document.get("samples") or {}).get("parts", {})
        for part, samples in parts.items():
            kept = samples | {"probabilities": document["samples"]["probabilities"]}
            found.append((server_of(document), name if len(parts) == 1 else f"{name} · {part}", kept))
    servers = list(dict.fromkeys(server for server, _, _ in found))
    lines = []
    for place, (server, name, kept) in enumerate(found):
        color, dash = place, 0
        if 1 < len(servers) < len(found):
            color, dash = servers.index(server), sum(other == server for other, _, _ in found[:place])
        lines.append(Series(name, series_class(color, dash), kept))
    return lines


def server_of(document: Document) -> str:
    """What documents of one line in the throughput plot have in common."""
    name = str(document.get("label") or document.get("server") or "server")
    return f"{name} · {document['transport']}" if document.get("transport") else name


def by_server(documents: Sequence[Document], names: Sequence[str]) -> dict[str, list[tuple[Document, str]]]:
    groups: dict[str, list[tuple[Document, str]]] = {}
    for document, name in zip(documents, names, strict=True):
        groups.setdefault(server_of(document), []).append((document, name))
    return groups


def overview(documents: Sequence[Document]) -> str:
    """What all documents share, in one sentence."""
    shared = [
        f"{key} {documents[0][key]}"
        for key in ("model", "workload", "transport", "seed", "gpu", "git_rev")
        if documents[0].get(key) is not None and len({str(document.get(key)) for document in documents}) == 1
    ]
    repeats = sum(len(document["repeats"]) for document in documents)
    requests = sum(document["requests"] for document in documents)
    told = [f"{requests:,} requests in {repeats} repeats", *shared]
    return f"<p>{escape(' · '.join(told))}</p>"


HEAD = (
    "",
    "tokens/s",
    "TTFT p50",
    "TTFT p99",
    "ITL p50",
    "ITL p99",
    "ITL p99.9",
    "ITL max",
    "longest gap p50",
    "TPOT p50",
    "merged",
    "failed",
)
COLUMNS = (
    "output_throughput",
    "median_ttft_ms",
    "p99_ttft_ms",
    "median_itl_ms",
    "p99_itl_ms",
    "p999_itl_ms",
    "max_itl_ms",
    "max_gap_p50_ms",
    "median_tpot_ms",
)


def table_of(documents: Sequence[Document], names: Sequence[str]) -> str:
    rows = []
    for document, name in zip(documents, names, strict=True):
        parts = document.get("parts") or {}
        spread = document["spread"]
        if not parts:
            rows.append(row_of(name, document, spread))
        rows += [row_of(f"{name} · {part}", values, spread["parts"][part]) for part, values in parts.items()]
    note = "Medians over repeats, maxima the worst of all; below, the least and greatest repeat. Latencies in ms."
    return f"{sheet(HEAD, rows)}<p>{note}</p>"


def row_of(name: str, values: dict[str, Any], spread: dict[str, Any]) -> list[str]:
    cells = [escape(name)]
    for key in COLUMNS:
        text = number(values[key])
        if key in spread and spread[key][0] != spread[key][1]:
            text += f"<small>{number(spread[key][0])} to {number(spread[key][1])}</small>"
        cells.append(text)
    share = values["merged_token_share"]
    cells.append("–" if share is None else f"{share:.1%}")
    failed = f"{values['failed']} of {values['requests']}"
    cells.append(f'<span class="bad">{failed}</span>' if values["failed"] else "0")
    return cells


def problems_of(documents: Sequence[Document], names: Sequence[str]) -> Iterator[str]:
    for document, name in zip(documents, names, strict=True):
        told = [f"not valid: {problem}" for problem in document["problems"]]
        told += [f"{error['count']} requests failed: {error['message']}" for error in document["errors"]]
        for text in told:
            yield f'<p class="bad">{escape(name)}: {escape(text)}</p>'


def distributions(documents: Sequence[Document], lines: Sequence[Series]) -> str:
    floors = {document.get("floor_ms") for document in documents} - {None}
    floor = floors.pop() if len(floors) == 1 else None
    figures = [
        quantile_figure("Time to first token", "requests", lines, "ttft_ms", None),
        quantile_figure("Time between tokens", "tokens", lines, "itl_ms", floor),
        quantile_figure("Time per output token of a request", "requests", lines, "tpot_ms", floor),
        quantile_figure("Longest gap of a request", "requests", lines, "max_gap_ms", None),
    ]
    note = "How large a share stays below which time: every step to the right is another nine."
    return section("Distributions", note, [drawn for drawn in figures if drawn])


def quantile_figure(
    title: str, what: str, lines: Sequence[Series], key: str, floor: float | None
) -> str | None:
    """Quantiles of one latency, as far out as there are samples to tell them; None without any."""
    curves = [(line, curve_of(line.samples, key)) for line in lines]
    curves = [(line, curve) for line, curve in curves if curve]
    if not curves:
        return None
    values = [value for _, curve in curves for _, value in curve] + ([floor] if floor else [])
    y = logarithmic_over("ms", values)
    plot = Plot(title, nines(f"share of {what}", max(curve[-1][0] for _, curve in curves)), y)
    if floor:
        plot.level(floor, f"floor {number(floor)} ms")
    for line, curve in curves:
        plot.line(curve, line.style, line.name)
        for wanted in (0.5, 0.9, 0.99, 0.999, 0.9999):
            for share, value in curve:
                if abs(share - wanted) < 1e-9:
                    plot.dot((share, value), line.style, f"{line.name}: p{share * 100:g} {number(value)} ms")
        greatest = line.samples[key]["quantiles"][-1]
        plot.dot(curve[-1], line.style, f"{line.name}: max {number(greatest)} ms")
    counts = " / ".join(f"{line.samples[key]['count']:,}" for line, _ in curves[:4])
    return figure(title, f"{counts} {what}", plot.svg())


def curve_of(samples: dict[str, Any], key: str) -> list[Point]:
    """(share, ms) of a sketch up to its maximum, which stands where its rank is: n values tell 1 - 1/n at most.
    Zeros, which merged tokens have, are lifted to the least value above zero, as a log axis has none."""
    sketch = samples[key]
    count = sketch["count"]
    above = [value for value in sketch["quantiles"] if value > 0]
    if count < 2 or not above:
        return []
    last = 1 - 1 / count
    curve = [
        (share, max(value, above[0]))
        for share, value in zip(samples["probabilities"], sketch["quantiles"], strict=True)
        if share < last
    ]
    return [*curve, (last, sketch["quantiles"][-1])]


def load_curves(groups: dict[str, list[tuple[Document, str]]]) -> str:
    """Throughput against latency: a dot per document, a line per server through its dots."""
    figures = []
    for title, key in (
        ("TTFT p50", "median_ttft_ms"),
        ("TTFT p99", "p99_ttft_ms"),
        ("ITL p50", "median_itl_ms"),
        ("ITL p99", "p99_itl_ms"),
    ):
        dots = {
            group: sorted(
                (document["output_throughput"], document[key], name)
                for document, name in members
                if document["output_throughput"] and document[key]
            )
            for group, members in groups.items()
        }
        latencies = [latency for members in dots.values() for _, latency, _ in members]
        if not latencies:
            continue
        most = max(rate for members in dots.values() for rate, _, _ in members)
        plot = Plot(title, linear("tokens/s", 0, most), logarithmic_over("ms", latencies))
        for place, (group, members) in enumerate(dots.items()):
            style = series_class(place)
            if len(members) > 1:
                plot.line([(rate, latency) for rate, latency, _ in members], style, group)
            for rate, latency, name in members:
                plot.dot(
                    (rate, latency), style, f"{name}: {number(rate)} tokens/s, {number(latency)} ms", 4.5
                )
        figures.append(figure(title, "against output throughput", plot.svg()))
    note = "A dot per result, a line per server: further right and lower is better."
    head = legend((series_class(place), group) for place, group in enumerate(groups))
    return section("Throughput against latency", note, figures, head)


def course_of(document: Document, name: str, lines: Sequence[Series]) -> str:
    samples = document["samples"]
    parts = list(samples["parts"])
    styles = {
        part: next(
            (line.style for line in lines if line.name in (name, f"{name} · {part}")),
            series_class(0),
        )
        for part in parts
    }
    figures = [
        drawn
        for drawn in (
            rate_figure(samples["course"], styles),
            arrival_figure(samples["course"], styles),
            timeline_figure(samples["timeline"], styles),
        )
        if drawn
    ]
    return section(f"Course of the last repeat: {name}", "", figures)


def rate_figure(course: dict[str, Any], styles: dict[str, str]) -> str | None:
    tokens, width = course["tokens"], course["bin_ms"] / 1e3
    if len(tokens) < 2:
        return None
    points = []
    for place, count in enumerate(tokens):
        points += [(place * width, count / width), ((place + 1) * width, count / width)]
    plot = Plot(
        "Tokens per second", linear("s", 0, points[-1][0]), linear("tokens/s", 0, max(y for _, y in points))
    )
    style = next(iter(styles.values()))
    plot.area(points, style, "tokens per second")
    return figure("Tokens per second", f"of all streams, per {number(width * 1e3)} ms", plot.svg())


def arrival_figure(course: dict[str, Any], styles: dict[str, str]) -> str | None:
    requests = course["requests"]
    if not requests:
        return None
    values = [ttft for _, ttft, _ in requests]
    plot = Plot(
        "Time to first token by arrival",
        linear("s", 0, max(at for at, _, _ in requests) / 1e3),
        logarithmic_over("ms", values),
    )
    for part, style in styles.items():
        points = [(at / 1e3, ttft) for at, ttft, own in requests if own == part]
        if points:
            plot.dots(points, style, f"{part}: {len(points)} requests", "blob")
    return figure("Time to first token by arrival", "one dot per request", plot.svg())


def timeline_figure(timeline: dict[str, Any], styles: dict[str, str]) -> str | None:
    """Streams over time: a row per answer, a dot per chunk, the longest gap in view marked."""
    rows = timeline["rows"]
    if not rows:
        return None
    height = 54 + max(60, 11 * len(rows))
    x = linear("ms since the start of the run", timeline["from_ms"], timeline["to_ms"])
    # The window that was kept, not the round numbers around it.
    x = x._replace(
        low=timeline["from_ms"],
        high=max(timeline["to_ms"], timeline["from_ms"] + 1e-3),
        ticks=[tick for tick in x.ticks if timeline["from_ms"] <= tick.value <= timeline["to_ms"]],
    )
    y = linear("streams", 0, 1)._replace(low=-0.5, high=len(rows) - 0.5, ticks=[])
    plot = Plot("Timeline of streams", x, y, width=1100, height=height)
    worst: tuple[float, float, float, int] | None = None
    for place, row in enumerate(rows):
        at, line = row["sent_ms"], len(rows) - 1 - place
        times = []
        for step in row["at_us"]:
            at += step / 1e3
            times.append(at)
        tokens = row.get("tokens") or [1] * len(times)
        gaps = [(after - before, before, after, line) for before, after in itertools.pairwise(times)]
        longest = max(gaps, default=None)
        if longest and (worst is None or longest > worst):
            worst = longest
        title = f"request {row['number']} ({row['part']}): {sum(tokens)} tokens in {len(times)} chunks here"
        if longest:
            title += f", longest gap {number(longest[0])} ms"
        style = styles.get(row["part"], series_class(0))
        begin = row["sent_ms"]
        if times and begin >= timeline["from_ms"]:
            plot.stroke(
                (begin, line), (times[0], line), f"thin {style}", f"request {row['number']}: sent, waiting"
            )
        for size, wanted in (("speck", False), ("blob", True)):
            dots = [
                (at, float(line)) for at, count in zip(times, tokens, strict=True) if (count > 1) is wanted
            ]
            if dots:
                plot.dots(dots, style, title, size)
    if worst:
        gap, before, after, line = worst
        plot.stroke((before, line), (after, line), "late", f"longest gap: {number(gap)} ms")
    some = len(rows) < timeline["answers"]
    whole = f"{len(rows)} of {timeline['answers']} answers" if some else "all answers"
    if not timeline["whole"]:
        whole += " around the longest gap"
    note = (
        f"{whole}; one row each, a thin line from sending to the first token, a dot per chunk (large: several "
        "tokens at once), the longest gap in red"
    )
    return figure("Timeline of streams", note, plot.svg(), wide=True)


def read(path: Path) -> list[Document]:
    """The documents in a file. ValueError, with the path, if it holds anything else."""
    try:
        # A bench prints lines for people first: the document is the last line of its output, or the whole file.
        text = path.read_text(encoding="utf-8").strip()
        try:
            content = json.loads(text)
        except json.JSONDecodeError:
            content = json.loads(text.rpartition("\n")[2])
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None
    if isinstance(content, dict) and "results" in content:
        content = content["results"]
    documents = content if isinstance(content, list) else [content]
    for document in documents:
        if not isinstance(document, dict) or "repeats" not in document or "spread" not in document:
            raise ValueError(f"{path} is not the result of a load run")
    return documents


def main(arguments: list[str] | None = None) -> int:
    """Reads documents, writes the report."""
    parser = argparse.ArgumentParser(prog="headrace bench report", description="HTML report of load runs")
    parser.add_argument("files", nargs="+", type=Path, metavar="JSON", help="results of load runs to compare")
    parser.add_argument("--html", type=Path, default=Path("report.html"), help="file to write (report.html)")
    options = parser.parse_args(arguments)
    try:
        documents = [document for path in options.files for document in read(path)]
        write_html(documents, options.html)
    except (ValueError, OSError) as error:
        print(f"headrace bench report: {error}", file=sys.stderr)
        return 2
    print(f"{options.html}: {len(documents)} result{'s' if len(documents) != 1 else ''}")
    print(json.dumps({"bench": "report", "html": str(options.html), "results": len(documents)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
