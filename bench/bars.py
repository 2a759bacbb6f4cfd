"""Results of load runs beside what one H200 must and should reach, and beside the best that peers reached there.

    headrace bench bars results/*.json        one line per cell and transport

Peers: SGLang 0.5.16 and vLLM 0.25, the better of the two in each cell, on the same machine with random weights in
the same shapes. "must" and "aim" belong to bfloat16; other machines have other floors.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SMALL, LARGE = "qwen3-0.6b", "llama-3.1-8b"


@dataclass(frozen=True, slots=True)
class Bar:
    """What one number of one cell is held against. key: its path in a result, parts joined by dots. Milliseconds
    and seconds are better when they are less, rates when they are more. aim, peers: None where nobody said."""

    model: str
    workload: str
    label: str
    key: str
    unit: str
    must: float
    aim: float | None
    peers: float | None

    @property
    def less(self) -> bool:
        return self.unit in ("ms", "s")

    def met(self, value: float) -> str:
        """ "aim", "must" or "MISS"."""
        sign = 1 if self.less else -1
        if self.aim is not None and sign * value <= sign * self.aim:
            return "aim"
        return "must" if sign * value <= sign * self.must else "MISS"


RATE = "output_throughput"
BARS = (
    Bar(SMALL, "single_128_256", "TPOT p50", "median_tpot_ms", "ms", 0.70, 0.48, 1.61),
    Bar(SMALL, "single_128_256", "TTFT p50", "median_ttft_ms", "ms", 3.0, 1.5, 12.8),
    Bar(SMALL, "c8_512_256", "output", RATE, "tok/s", 8500, 10000, 4600),
    Bar(SMALL, "c64_512_256", "output", RATE, "tok/s", 24000, 30000, 16500),
    Bar(SMALL, "c256_512_256", "output", RATE, "tok/s", 28000, 37000, 17500),
    Bar(SMALL, "prefix_2048_64_32", "TTFT p50", "median_ttft_ms", "ms", 8.0, 4.0, 28.0),
    Bar(SMALL, "start", "exec to first token", "median_of_later.first_token_s", "s", 15.0, 8.0, 129.0),
    Bar(LARGE, "single_128_256", "TPOT p50", "median_tpot_ms", "ms", 4.10, 3.75, 4.70),
    Bar(LARGE, "single_128_256", "TTFT p50", "median_ttft_ms", "ms", 7.0, 5.0, 12.3),
    Bar(LARGE, "single_1024_128", "TTFT p50", "median_ttft_ms", "ms", 27.0, 23.0, 28.2),
    Bar(LARGE, "c64_512_256", "output", RATE, "tok/s", 7300, 8200, 6940),
    Bar(LARGE, "c256_512_256", "output", RATE, "tok/s", 10800, 12000, 10800),
    Bar(LARGE, "interfere", "decode ITL p99", "parts.decode.p99_itl_ms", "ms", 16.0, 12.0, 176.0),
    Bar(LARGE, "interfere", "decode ITL max", "parts.decode.max_itl_ms", "ms", 25.0, 16.0, 189.0),
    Bar(LARGE, "interfere", "long TTFT p50", "parts.long.median_ttft_ms", "ms", 310.0, 240.0, 205.0),
    Bar(LARGE, "prefix_2048_64_32", "TTFT p50", "median_ttft_ms", "ms", 30.0, 22.0, 37.0),
    Bar(LARGE, "start", "exec to first token", "median_of_later.first_token_s", "s", 25.0, 15.0, 54.0),
)


def results_of(document: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    """(model, workload, transport, numbers) of everything a document of `bench serve` or `bench start` holds."""
    if document.get("bench") == "start":
        yield Path(document["model"]).name, "start", "-", document
    for result in document.get("results", ()):
        yield result["model"], result["workload"], result["transport"], result


def find(numbers: Mapping[str, Any], path: str) -> float | None:
    """The number at this path, None where there is none."""
    value: Any = numbers
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def compare(documents: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each bar and each result that it measures, in the order of BARS, and one for each bar that
    nothing measured. A refused or invalid result says so and counts as missed."""
    found = [result for document in documents for result in results_of(document)]
    rows = []
    for bar in BARS:
        row = {
            "model": bar.model,
            "workload": bar.workload,
            "label": bar.label,
            "unit": bar.unit,
            "must": bar.must,
            "aim": bar.aim,
            "peers": bar.peers,
        }
        measured = [found_ for found_ in found if found_[:2] == (bar.model, bar.workload)]
        for _, _, transport, numbers in measured:
            value = find(numbers, bar.key)
            trouble = [numbers["refused"]] if numbers.get("refused") else list(numbers.get("problems") or ())
            if numbers.get("failed"):
                trouble.append(f"{numbers['failed']} failed")
            rows.append(
                row
                | {
                    "transport": transport,
                    "measured": value,
                    "met": "MISS" if value is None else bar.met(value),
                    "trouble": trouble,
                }
            )
        if not measured:
            rows.append(row | {"transport": "-", "measured": None, "met": "not run", "trouble": []})
    return rows


def shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


HEAD = (
    f"{'model':<14}{'cell':<19}{'number':<20}{'transport':<14}{'measured':>10}{'must':>9}{'aim':>9}"
    f"{'peers':>9}  {'unit':<6} met"
)


def line_of(row: Mapping[str, Any]) -> str:
    numbers = (
        f"{shown(row['measured']):>10}{shown(row['must']):>9}{shown(row['aim']):>9}{shown(row['peers']):>9}"
    )
    told = f"  {'; '.join(row['trouble'])}" if row["trouble"] else ""
    return (
        f"{row['model']:<14}{row['workload']:<19}{row['label']:<20}{row['transport']:<14}{numbers}"
        f"  {row['unit']:<6} {row['met']}{told}"
    )


COLUMNS = (
    ("TTFT p50", "median_ttft_ms"),
    ("p99", "p99_ttft_ms"),
    ("TPOT p50", "median_tpot_ms"),
    ("ITL p99", "p99_itl_ms"),
    ("max", "max_itl_ms"),
    ("tok/s", RATE),
    ("steady", "steady_output_throughput"),
    ("% floor", "pct_of_floor"),
    ("client %", "client_cpu_pct"),
)


def overview(documents: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for every load run, whether it has a bar or not; each part of a run has its own."""
    results = [result for document in documents for result in results_of(document) if result[1] != "start"]
    if results:
        names = "".join(f"{name:>9}" for name, _ in COLUMNS)
        yield f"{'model':<14}{'cell':<19}{'transport':<14}{names}{'requests':>9}{'failed':>7}"
    for model, workload, transport, numbers in results:
        shares: Mapping[str, Any] = numbers.get("parts") or {"": numbers}
        for part, own in shares.items():
            cells = "".join(f"{shown(find(own, key)):>9}" for _, key in COLUMNS)
            counts = f"{shown(find(own, 'requests')):>9}{shown(find(own, 'failed')):>7}"
            yield f"{model:<14}{f'{workload} {part}':<19}{transport:<14}{cells}{counts}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and, last, its JSON. 0 if every measured number reaches its must, else 1."""
    parser = argparse.ArgumentParser(
        prog="headrace bench bars", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("files", nargs="+", type=Path, help="JSON that bench serve or bench start wrote")
    parser.add_argument("--measured", action="store_true", help="leave out what was not measured")
    parser.add_argument(
        "--alias", action="append", default=[], metavar="NAME=MODEL", help="results call this model so"
    )
    parser.add_argument("--out", type=Path, help="write the JSON to this file as well")
    given = parser.parse_args(argv)
    names = dict(alias.split("=", 1) for alias in given.alias if "=" in alias)
    if len(names) < len(given.alias):
        parser.error("an alias is NAME=MODEL, and each name is given once")
    documents = [json.loads(path.read_text()) for path in given.files]
    for result in (result for document in documents for result in document.get("results", ())):
        result["model"] = names.get(result["model"], result["model"])
    rows = compare(documents)
    if given.measured:
        rows = [row for row in rows if row["met"] != "not run"]
    for text in overview(documents):
        print(text)
    if rows:
        print(HEAD)
    for row in rows:
        print(line_of(row))
    line = json.dumps({"bench": "bars", "rows": rows})
    if given.out:
        given.out.write_text(line + "\n")
    print(line)
    return 1 if any(row["met"] == "MISS" or row["trouble"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
