"""What a server measured itself: its Prometheus histograms, before and after a run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from headrace.bench.http_wire import Target
from headrace.bench.load import LoadError
from headrace.bench.probe import get

LINE = re.compile(
    r"(?P<name>[A-Za-z_:][\w:]*)_(?P<kind>bucket|sum|count)(?:\{(?P<labels>.*)\})? (?P<value>\S+)"
)
BOUND = re.compile(r'\ble="([^"]+)"')
# What is told of a server, under one name for all: histogram names end like these.
STAGES = {
    "queue": ("headrace_queue_seconds", "request_queue_time_seconds", "sglang:queue_time_seconds"),
    "prefill": ("request_prefill_time_seconds",),
    "first token": ("time_to_first_token_seconds",),
    "step": ("headrace_step_seconds",),
    "launch gap": ("headrace_launch_gap_seconds",),
    "look lag": ("headrace_look_lag_seconds",),
    "token to token": ("inter_token_latency_seconds", "time_per_output_token_seconds"),
    "request": ("headrace_request_seconds", "e2e_request_latency_seconds"),
}

Histogram = dict[float, float]
"""Upper bound (seconds) to the count of everything at or below it; the sum of values under -1."""
SUM = -1.0


def read_histograms(text: str) -> dict[str, Histogram]:
    """The stages that a metrics page has, series of different labels added up."""
    found: dict[str, Histogram] = {}
    for line in text.splitlines():
        match = LINE.match(line)
        if match is None or match["kind"] == "count":
            continue
        stage = next((stage for stage, ends in STAGES.items() if match["name"].endswith(ends)), None)
        if stage is None:
            continue
        bound = SUM
        if match["kind"] == "bucket":
            told = BOUND.search(match["labels"] or "")
            if told is None:
                continue
            bound = float(told[1])
        histogram = found.setdefault(stage, {})
        histogram[bound] = histogram.get(bound, 0.0) + float(match["value"])
    return found


def scrape(target: Target) -> dict[str, Histogram]:
    """The histograms of a server now; empty if it keeps none."""
    try:
        status, body = get(target, "/metrics")
    except LoadError:
        return {}
    return read_histograms(body.decode(errors="replace")) if status == 200 else {}


def since(before: Mapping[str, Histogram], after: Mapping[str, Histogram]) -> dict[str, Histogram]:
    """What came between two looks."""
    return {
        stage: {bound: count - before.get(stage, {}).get(bound, 0.0) for bound, count in histogram.items()}
        for stage, histogram in after.items()
    }


def add(one: Mapping[str, Histogram], two: Mapping[str, Histogram]) -> dict[str, Histogram]:
    return since(
        {stage: {bound: -count for bound, count in histogram.items()} for stage, histogram in one.items()},
        two,
    )


def told(histograms: Mapping[str, Histogram]) -> dict[str, dict[str, float]]:
    """Per stage, in ms: mean, median and p99, interpolated within buckets. Stages that saw nothing are left out."""
    found = {}
    for stage, histogram in histograms.items():
        bounds = sorted(bound for bound in histogram if bound != SUM)
        total = histogram[bounds[-1]] if bounds else 0.0
        if total > 0:
            found[stage] = {
                "count": total,
                "mean_ms": histogram.get(SUM, math.nan) / total * 1e3,
                "median_ms": quantile(histogram, bounds, 0.5) * 1e3,
                "p99_ms": quantile(histogram, bounds, 0.99) * 1e3,
            }
    return found


def quantile(histogram: Histogram, bounds: list[float], share: float) -> float:
    """Linear within the bucket; above the last finite bound, that bound."""
    wanted = share * histogram[bounds[-1]]
    below, low = 0.0, 0.0
    for bound in bounds:
        count = histogram[bound]
        if count >= wanted and count > below:
            return low if math.isinf(bound) else low + (bound - low) * (wanted - below) / (count - below)
        below, low = count, bound
    return low
