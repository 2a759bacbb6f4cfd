"""Results and progress of load runs in a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

BOLD, DIM, RED, GREEN, PLAIN = "\033[1m", "\033[2m", "\033[31m", "\033[32m", "\033[0m"

# Row label, key of the median, p90, p99, p99.9, max and mean of each latency.
LATENCIES: tuple[tuple[str, str], ...] = (
    ("TTFT", "ttft"),
    ("ITL", "itl"),
    ("TPOT", "tpot"),
    ("end to end", "e2el"),
)
STATISTICS = (
    ("p50", "median"),
    ("p90", "p90"),
    ("p99", "p99"),
    ("p99.9", "p999"),
    ("max", "max"),
    ("mean", "mean"),
)
LABEL, COLUMN = 13, 9


def number(value: float | None) -> str:
    """A value as a person reads it: three or four digits, thousands apart; a dash for None."""
    if value is None:
        return "–"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 100:
        return f"{value:.0f}"
    if size >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}"


def render(summary: Mapping[str, Any], *, color: bool = False) -> str:
    """The table of one summary of `metrics.summarise`, lines joined by newlines.

    Headings `label` or `server`, `model`, `workload`, `seed` are shown where the summary has them. What spoils the
    result (failures, problems) is always the last thing said. color: escape codes for a terminal.
    """
    paint = Paint(color)
    lines = [*heading(summary, paint), ""]
    parts = summary.get("parts") or {}
    if not parts:
        lines += latency_block(summary, summary["spread"], paint)
        lines += ["", *rate_lines(summary, summary["spread"])]
    for name, part in parts.items():
        spread = summary["spread"]["parts"][name]
        lines += [paint(BOLD, name), *latency_block(part, spread, paint), "", *rate_lines(part, spread), ""]
    if parts:
        lines.append(paint(BOLD, "all parts"))
        lines += rate_lines(summary, summary["spread"])
    lines += split_lines(summary)
    lines += ["", *client_lines(summary), *verdict(summary, paint)]
    return "\n".join(lines)


class Paint:
    """Colours text, or leaves it as it is."""

    def __init__(self, color: bool) -> None:
        self.color = color

    def __call__(self, code: str, text: str) -> str:
        return f"{code}{text}{PLAIN}" if self.color else text


def heading(summary: Mapping[str, Any], paint: Paint) -> list[str]:
    named = [summary.get("label") or summary.get("server"), summary.get("workload"), summary.get("transport")]
    title = " · ".join(str(name) for name in named if name)
    repeats = len(summary["repeats"])
    told = [f"{summary['requests']:,} requests in {repeats} repeat{'s' if repeats != 1 else ''}"]
    told += [f"{key} {summary[key]}" for key in ("model", "seed") if summary.get(key) is not None]
    return [paint(BOLD, title), paint(DIM, " · ".join(told))]


def latency_block(values: Mapping[str, Any], spread: Mapping[str, Any], paint: Paint) -> list[str]:
    head = "".join(f"{name:>{COLUMN}}" for name, _ in STATISTICS)
    lines = [paint(DIM, f"{'ms':<{LABEL}}{head}   p50 over repeats")]
    for label, what in LATENCIES:
        cells = "".join(f"{number(values[f'{key}_{what}_ms']):>{COLUMN}}" for _, key in STATISTICS)
        lines.append(f"{label:<{LABEL}}{cells}{between(spread, f'median_{what}_ms', '   ')}")
    keys = ("max_gap_p50_ms", "max_gap_p90_ms", "max_gap_p99_ms", None, "max_itl_ms", None)
    cells = "".join(f"{number(values[key]) if key else '':>{COLUMN}}" for key in keys)
    lines.append(f"{'longest gap':<{LABEL}}{cells}{between(spread, 'max_gap_p50_ms', '   ')}".rstrip())
    return lines


def between(spread: Mapping[str, Any], key: str, before: str = " ") -> str:
    """` (least to greatest)` of a metric over the repeats, nothing where there is none."""
    if key not in spread:
        return ""
    least, greatest = spread[key]
    return f"{before}{number(least)} to {number(greatest)}"


def rate_lines(values: Mapping[str, Any], spread: Mapping[str, Any]) -> list[str]:
    def line(label: str, key: str, unit: str, note: str = "") -> str:
        over = f"  ({between(spread, key, '')})" if key in spread else ""
        return f"{label:<{LABEL}}{number(values[key]):>{COLUMN}} {unit}{over}{note}"

    lines = [line("output", "output_throughput", "tokens/s")]
    if values["steady_output_throughput"] is not None:
        basis = {"waves": "first and last wave left out", "decode": "while all streams decode"}
        note = f"  {basis.get(values['steady_window'], '')}".rstrip()
        lines.append(line("steady", "steady_output_throughput", "tokens/s", note))
    if values["completed"]:
        lines.append(line("requests", "request_throughput", "per s"))
    if values["request_goodput"] is not None:
        lines.append(line("goodput", "request_goodput", "per s"))
    share = values["merged_token_share"]
    if share is not None:
        lines.append(
            f"{'tokens':<{LABEL}}{share * 100:>{COLUMN - 1}.1f}% merged, "
            f"jitter {number(values['itl_jitter_ms'])} ms, {values['stalls']} stalls above 3x the median gap"
        )
    if values["first_wave_requests"] > 1 and values["later_waves_median_ttft_ms"] is not None:
        lines.append(
            f"{'TTFT by wave':<{LABEL}}{number(values['first_wave_median_ttft_ms']):>{COLUMN}} ms in the first "
            f"({values['first_wave_requests']:g} requests), {number(values['later_waves_median_ttft_ms'])} ms later"
        )
    return lines


def split_lines(summary: Mapping[str, Any]) -> list[str]:
    told = [
        f"{name} {number(values['median_ms'])} (p99 {number(values['p99_ms'])})"
        for name, values in (summary.get("split") or {}).items()
    ]
    return [f"{'server, ms':<{LABEL}} {', '.join(told)}"] if told else []


def client_lines(summary: Mapping[str, Any]) -> list[str]:
    told = []
    if summary["client_cpu_pct"] is not None:
        told.append(f"busiest process {summary['client_cpu_pct']:.0f}% CPU")
    if summary["client_events_per_s"] is not None:
        told.append(f"{number(summary['client_events_per_s'])} events/s")
    if summary["max_send_delay_ms"] is not None and summary["max_send_delay_ms"] > 0:
        told.append(f"sent at most {number(summary['max_send_delay_ms'])} ms late")
    return [f"{'client':<{LABEL}} {', '.join(told)}"] if told else []


def verdict(summary: Mapping[str, Any], paint: Paint) -> list[str]:
    lines = []
    if summary["ended_early"]:
        lines.append(f"{summary['ended_early']} answers ended before the wanted number of tokens")
    if summary["unverified"]:
        lines.append(
            f"{summary['unverified']} answers came without usage: their tokens are counted, not verified"
        )
    if summary["left"]:
        lines.append(f"{summary['left']} requests were left on purpose")
    if summary["failed"]:
        lines.append(paint(RED, f"{summary['failed']} of {summary['requests']} requests FAILED:"))
        for error in summary["errors"][:5]:
            lines.append(paint(RED, f"  {error['count']} x {error['message']} (request {error['request']})"))
        if len(summary["errors"]) > 5:
            lines.append(paint(RED, f"  and {len(summary['errors']) - 5} other messages"))
    lines += [paint(RED, f"NOT VALID: {problem}") for problem in summary["problems"]]
    return lines


def render_comparison(names: Sequence[str], ratios: Mapping[str, Any], *, color: bool = False) -> str:
    """The table of `metrics.compare`: how `names[1]` relates to `names[0]`, repeat by repeat."""
    paint = Paint(color)
    lines = [paint(BOLD, f"{names[1]} / {names[0]}, ratio of paired repeats")]
    for part, values in (("", ratios), *ratios.get("parts", {}).items()):
        if part:
            lines.append(part)
        for key, value in values.items():
            if key == "parts":
                continue
            better = value["median"] > 1 if key.endswith(("throughput", "goodput")) else value["median"] < 1
            least, greatest = value["spread"]
            # Only a difference on which all repeats agree is coloured.
            agreed = least > 1 or greatest < 1
            text = f"{value['median']:>7.3f}x   {least:.3f} to {greatest:.3f}"
            lines.append(f"  {key:<28}" + (paint(GREEN if better else RED, text) if agreed else text))
    return "\n".join(lines)


class Progress:
    """How far a run is: one line that is rewritten on a terminal, a line now and then elsewhere.

    total: requests, or seconds with `unit="s"`. Call `update` as often as you like and `close` at the end.
    """

    WIDTH = 24

    def __init__(
        self,
        total: float,
        title: str = "",
        *,
        unit: str = "requests",
        out: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = total
        self.title = title
        self.unit = unit
        self.out = sys.stderr if out is None else out
        self.live = self.out.isatty()
        self.pause = 0.1 if self.live else 10.0
        self.clock = clock
        self.began = self.shown_at = clock()
        self.text = ""

    def update(self, done: float, tokens: int = 0, failed: int = 0) -> None:
        """`done` of the total, tokens received and requests failed so far."""
        now = self.clock()
        rate = tokens / (now - self.began) if now > self.began else 0.0
        self.text = self.line(done, rate, failed)
        if now - self.shown_at >= self.pause:
            self.shown_at = now
            self.show()

    def line(self, done: float, rate: float, failed: int) -> str:
        share = min(1.0, done / self.total) if self.total else 1.0
        filled = int(share * self.WIDTH)
        bar = "█" * filled + "·" * (self.WIDTH - filled)
        amount = f"{done:,.0f}/{self.total:,.0f} {self.unit}"
        wrong = f", {failed} FAILED" if failed else ""
        return f"{self.title} {bar} {share:4.0%} {amount}, {number(rate)} tokens/s{wrong}".strip()

    def show(self) -> None:
        # The rest of a longer line before it is wiped.
        self.out.write(f"\r{self.text}\033[K" if self.live else f"{self.text}\n")
        self.out.flush()

    def close(self) -> None:
        """Shows the last state and ends the line."""
        if self.text:
            self.show()
        if self.live:
            self.out.write("\n")
            self.out.flush()
