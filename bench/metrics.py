"""What load runs come to: latencies, throughput and goodput of each repeat, their median and spread.

Names are those of `vllm bench serve` where it has one (`mean_ttft_ms`, `p99_itl_ms`, `request_goodput`, ...). What
they mean here:

- TTFT: from when the request should have been sent to the first chunk with a token. E2EL: to the last one.
- ITL: gap between consecutive tokens; a chunk with n tokens is one gap and n - 1 zeros, `merged_token_share` is the
  share of those among all tokens. TPOT: (last - first) / (tokens - 1) of a request. `max_gap_*`: percentiles over
  requests of each one's longest gap.
- `stalls`: gaps between chunks above 3 times their median. `itl_jitter_ms`: p99 - p50.
- Throughput: tokens counted / (last byte - first send). `steady_output_throughput`: within the window between the
  end of the first wave (requests sent before any ended) and the start of the last one (sent before the last was
  sent, and still running then). With a single wave: while all of its streams decode ("decode" in `steady_window`).
- Percentiles are interpolated linearly, as numpy does by default.
- Failed requests are counted with their messages and are part of no latency; requests that the client left on
  purpose are part of all but E2EL and goodput. A count that differs from `usage` is a failure (`answer.failure`).
"""

from __future__ import annotations

import collections
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.bench.answer import MS, Answer, failure, measure, miscount
from headrace.bench.record import Run, Trace
from headrace.bench.samples import samples

Floats = NDArray[np.float64]

STATISTICS: dict[str, Callable[[Floats], float]] = {
    "mean": lambda values: float(values.mean()),
    "median": lambda values: float(np.median(values)),
    "std": lambda values: float(values.std()),
    "p90": lambda values: float(np.percentile(values, 90)),
    "p99": lambda values: float(np.percentile(values, 99)),
    "p999": lambda values: float(np.percentile(values, 99.9)),
    "max": lambda values: float(values.max()),
}
# Goodput under these is always told: TTFT / TPOT in ms, MLPerf's server and interactive bounds and a strict pair.
LADDER = ((2000.0, 100.0), (500.0, 30.0), (100.0, 10.0))
BUSY_PCT = 70.0  # a client process above this measures itself
# Over repeats these are added up, and these are the worst of all; everything else is the median.
SUMMED = {"completed", "failed", "left", "ended_early", "unverified", "miscounted", "stalls", "requests"}
WORST = {
    "max_ttft_ms",
    "max_itl_ms",
    "max_tpot_ms",
    "max_e2el_ms",
    "max_ms",
    "max_send_delay_ms",
    "client_cpu_pct",
}


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What a good answer keeps to, ms; None: not bounded."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2el_ms: float | None = None
    max_gap_ms: float | None = None

    def bound_anything(self) -> bool:
        return any(getattr(self, field) is not None for field in self.__struct_fields__)

    def met_by(self, answer: Answer) -> bool:
        """Whether an answer keeps to every bound. One token has neither TPOT nor gap, and so breaks neither."""
        pairs = (
            (self.ttft_ms, answer.ttft),
            (self.tpot_ms, answer.tpot),
            (self.e2el_ms, answer.e2el),
            (self.max_gap_ms, answer.longest_gap),
        )
        return all(bound is None or value is None or value <= bound for bound, value in pairs)


def summarise(runs: Sequence[Run], bounds: Bounds) -> dict[str, Any]:
    """All metrics of the repeats of one scenario against one server, ready for JSON.

    Numbers at the top are medians over repeats (counts are added up, maxima are the worst); `spread` has their
    [least, greatest], `repeats` each repeat's own, `parts` the same per part if there are several, `samples` what
    plots are drawn from. Warm-up runs are told apart and count for nothing else. `problems` says why the result is
    not `valid`. Raises ValueError without a measured run.
    """
    measured = [run for run in runs if not run.warmup]
    if not measured:
        raise ValueError("no run was measured: all were warm-up")
    repeats = [whole(run, bounds) for run in measured]
    result = combine(repeats)
    result["spread"] = spread(repeats)
    result["repeats"] = repeats
    result["transport"] = measured[0].transport
    result["warmup_runs"] = len(runs) - len(measured)
    result["warmup_failed"] = sum(
        failure(trace) is not None for run in runs if run.warmup for trace in run.traces
    )
    result["bounds"] = {
        field: value for field, value in msgspec.structs.asdict(bounds).items() if value is not None
    }
    result["errors"] = errors(trace for run in measured for trace in run.traces)
    result["problems"] = problems(result)
    result["valid"] = not result["problems"]
    result["samples"] = samples(measured)
    return result


def whole(run: Run, bounds: Bounds) -> dict[str, Any]:
    """The metrics of one repeat, with those of its parts and the client's own cost."""
    result = describe(run.traces, bounds)
    shares = [worker.cpu_s / worker.wall_s * 100 for worker in run.workers if worker.wall_s > 0]
    result["client_cpu_pct"] = max(shares, default=None)
    result["client_events_per_s"] = (
        sum(worker.events / worker.wall_s for worker in run.workers if worker.wall_s > 0) or None
    )
    names = sorted({trace.part for trace in run.traces})
    if len(names) > 1:
        result["parts"] = {
            name: describe([trace for trace in run.traces if trace.part == name], bounds) for name in names
        }
    return result


def describe(traces: Sequence[Trace], bounds: Bounds) -> dict[str, Any]:
    """The metrics of some traces of one run. What cannot be told (no token came, one wave) is None."""
    sound = [trace for trace in traces if failure(trace) is None]
    answers = [measure(trace) for trace in sound if trace.chunks]
    whole_ones = [answer for answer in answers if not answer.trace.left]
    begin = min((trace.sent_ns for trace in traces), default=0)
    end = max((trace.ended_ns for trace in traces), default=0)
    duration = (end - begin) / 1e9
    output = sum(answer.count for answer in answers)
    prompt = sum(trace.prompt_tokens or 0 for trace in sound)
    result: dict[str, Any] = {
        "requests": len(traces),
        "completed": len(whole_ones),
        "failed": len(traces) - len(sound),
        "left": sum(trace.left for trace in sound),
        "miscounted": sum(miscount(trace) is not None for trace in traces),
        "ended_early": sum(answer.count < answer.trace.wanted_tokens for answer in whole_ones),
        "unverified": sum(answer.trace.output_tokens is None for answer in whole_ones),
        "duration": duration,
        "total_input_tokens": prompt,
        "total_cached_tokens": sum(trace.cached_tokens or 0 for trace in sound),
        "total_output_tokens": output,
        "request_throughput": per_second(len(whole_ones), duration),
        "output_throughput": per_second(output, duration),
        "total_token_throughput": per_second(output + prompt, duration),
        "max_concurrent_requests": most_at_once(traces),
        "request_goodput": None,
        "goodput": {},
    }
    if bounds.bound_anything():
        result["request_goodput"] = per_second(sum(map(bounds.met_by, whole_ones)), duration)
    for ttft, tpot in LADDER:
        rung = Bounds(ttft_ms=ttft, tpot_ms=tpot)
        result["goodput"][f"{ttft:g}/{tpot:g}"] = per_second(sum(map(rung.met_by, whole_ones)), duration)
    result |= latencies(answers, whole_ones)
    result |= steady(answers)
    result |= first_wave(answers)
    late = np.array([(trace.sent_ns - trace.scheduled_ns) / MS for trace in traces])
    result["max_send_delay_ms"] = float(late.max()) if len(late) else None
    result["split"] = split(sound)
    return result


def latencies(answers: Sequence[Answer], whole_ones: Sequence[Answer]) -> dict[str, Any]:
    """TTFT, ITL, TPOT, E2EL, longest gaps and what is derived from gaps."""
    gaps = np.concatenate([np.empty(0), *(answer.gaps for answer in answers)])
    merged = sum(int((answer.tokens - 1).sum()) for answer in answers)
    tokens = sum(answer.count for answer in answers)
    itl = np.concatenate([gaps, np.zeros(merged)])
    longest = np.array([answer.longest_gap for answer in answers if answer.longest_gap is not None])
    result: dict[str, Any] = named("ttft", np.array([answer.ttft for answer in answers]))
    result |= named("itl", itl)
    result |= named("tpot", np.array([answer.tpot for answer in answers if answer.tpot is not None]))
    result |= named("e2el", np.array([answer.e2el for answer in whole_ones]))
    for name, percent in (("p50", 50), ("p90", 90), ("p99", 99)):
        result[f"max_gap_{name}_ms"] = float(np.percentile(longest, percent)) if len(longest) else None
    result["merged_token_share"] = merged / tokens if tokens else None
    result["itl_jitter_ms"] = float(np.percentile(itl, 99) - np.median(itl)) if len(itl) else None
    stalls = int((gaps > 3 * np.median(gaps)).sum()) if len(gaps) else 0
    result["stalls"] = stalls
    result["stall_share"] = stalls / len(gaps) if len(gaps) else None
    return result


def named(what: str, values: Floats) -> dict[str, float | None]:
    """Every statistic of `values` (ms) by its key; None of nothing."""
    return {
        f"{statistic}_{what}_ms": value(values) if len(values) else None
        for statistic, value in STATISTICS.items()
    }


def per_second(count: float, duration: float) -> float | None:
    return count / duration if duration > 0 else None


def most_at_once(traces: Sequence[Trace]) -> int:
    """The greatest number of requests under way; one that ends as another is sent is not beside it."""
    moves = sorted([(trace.sent_ns, 1) for trace in traces] + [(trace.ended_ns, -1) for trace in traces])
    under_way = most = 0
    for _, move in moves:
        under_way += move
        most = max(most, under_way)
    return most


def waves(answers: Sequence[Answer]) -> tuple[list[Answer], list[Answer]]:
    """The first and the last wave: sent before any ended; still running when the last was sent."""
    first_end = min(answer.trace.ended_ns for answer in answers)
    last_sent = max(answer.trace.sent_ns for answer in answers)
    return (
        [answer for answer in answers if answer.trace.sent_ns < first_end],
        [answer for answer in answers if answer.trace.ended_ns > last_sent],
    )


def steady(answers: Sequence[Answer]) -> dict[str, Any]:
    """Throughput while the load was even. All None where no such time is left."""
    nothing = {"steady_output_throughput": None, "steady_duration": None, "steady_window": None}
    first, last = waves(answers) if answers else ([], [])
    if not first or not last:
        return nothing
    begin = max(answer.trace.ended_ns for answer in first)
    end = min(answer.trace.sent_ns for answer in last)
    basis = "waves"
    if len(first) == len(answers):
        begin = max(int(answer.at_ns[0]) for answer in answers)
        end = min(int(answer.at_ns[-1]) for answer in answers)
        basis = "decode"
    if end <= begin:
        return nothing
    tokens = sum(
        int(answer.tokens[(answer.at_ns > begin) & (answer.at_ns <= end)].sum()) for answer in answers
    )
    return {
        "steady_output_throughput": tokens / ((end - begin) / 1e9),
        "steady_duration": (end - begin) / 1e9,
        "steady_window": basis,
    }


def first_wave(answers: Sequence[Answer]) -> dict[str, Any]:
    """TTFT of the first wave, which meets an idle server all at once, apart from the rest."""
    first = waves(answers)[0] if answers else []
    chosen = {id(answer) for answer in first}
    groups = {
        "first_wave": [answer.ttft for answer in first],
        "later_waves": [answer.ttft for answer in answers if id(answer) not in chosen],
    }
    result: dict[str, Any] = {"first_wave_requests": len(first)}
    for name, values in groups.items():
        for statistic in ("median", "p99"):
            value = STATISTICS[statistic](np.array(values)) if values else None
            result[f"{name}_{statistic}_ttft_ms"] = value
    return result


def split(traces: Iterable[Trace]) -> dict[str, dict[str, float]]:
    """What the server says of its own time, in ms, by name."""
    seconds: dict[str, list[float]] = collections.defaultdict(list)
    for trace in traces:
        for name, value in (trace.split or {}).items():
            seconds[name].append(value)
    return {
        name: {
            f"{key}_ms": STATISTICS[key](np.array(values) * 1e3) for key in ("mean", "median", "p99", "max")
        }
        for name, values in sorted(seconds.items())
    }


def errors(traces: Iterable[Trace]) -> list[dict[str, Any]]:
    """Messages of failed requests, the most frequent first, with their number and one request of each."""
    seen: dict[str, list[int]] = collections.defaultdict(list)
    for trace in traces:
        if message := failure(trace):
            seen[message].append(trace.number)
    return [
        {"message": message, "count": len(numbers), "request": numbers[0]}
        for message, numbers in sorted(seen.items(), key=lambda item: (-len(item[1]), item[0]))
    ]


def problems(result: dict[str, Any]) -> list[str]:
    """Why these numbers must not be quoted."""
    found = []
    if result["miscounted"]:
        found.append(f"{result['miscounted']} answers have other token counts than usage or the request says")
    if result["requests"] and not result["completed"] and not result["left"]:
        found.append("no request succeeded")
    if (busy := result["client_cpu_pct"]) is not None and busy > BUSY_PCT:
        found.append(f"a client process was {busy:.0f} % busy: above {BUSY_PCT:.0f} % it measures itself")
    return found


def combine(repeats: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One dict of the repeats' dicts, key by key, nested ones in the same way. Numbers that a repeat lacks are left
    out of their median."""
    result: dict[str, Any] = {}
    for key in dict.fromkeys(key for repeat in repeats for key in repeat):
        values = [repeat[key] for repeat in repeats if repeat.get(key) is not None]
        if not values:
            result[key] = None
        elif isinstance(values[0], dict):
            result[key] = combine(values)
        elif isinstance(values[0], str):
            result[key] = values[0] if len(set(values)) == 1 else "mixed"
        elif key in SUMMED:
            result[key] = sum(values)
        elif key in WORST:
            result[key] = max(values)
        else:
            result[key] = statistics.median(values)
    return result


def spread(repeats: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """[least, greatest] over the repeats of every number, nested as in the repeats."""
    result: dict[str, Any] = {}
    for key in dict.fromkeys(key for repeat in repeats for key in repeat):
        values = [repeat[key] for repeat in repeats if repeat.get(key) is not None]
        if values and isinstance(values[0], dict):
            result[key] = spread(values)
        elif values and isinstance(values[0], int | float):
            result[key] = [min(values), max(values)]
    return result


COMPARED = (
    "output_throughput",
    "steady_output_throughput",
    "request_goodput",
    *(f"{name}_{what}_ms" for what in ("ttft", "itl", "tpot") for name in ("median", "p99", "max")),
    "p999_itl_ms",
    "max_gap_p50_ms",
)


def compare(base: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two summaries whose repeats were interleaved on one machine: `other` / `base`, repeat by repeat.

    Pairing takes out whatever drifts over the sitting. By metric: the ratios, their median and [least, greatest];
    parts in the same way. Raises ValueError if the repeats do not pair up.
    """
    if len(base["repeats"]) != len(other["repeats"]):
        raise ValueError(f"{len(base['repeats'])} repeats do not pair with {len(other['repeats'])}")
    pairs = list(zip(base["repeats"], other["repeats"], strict=True))
    result = ratios(pairs)
    shared = [set(one.get("parts", ())) & set(two.get("parts", ())) for one, two in pairs]
    if parts := sorted(set.intersection(*shared)):
        result["parts"] = {
            name: ratios([(one["parts"][name], two["parts"][name]) for one, two in pairs]) for name in parts
        }
    return result


def ratios(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    result = {}
    for key in COMPARED:
        found = [two[key] / one[key] for one, two in pairs if one.get(key) and two.get(key) is not None]
        if found and all(map(math.isfinite, found)):
            result[key] = {
                "median": statistics.median(found),
                "spread": [min(found), max(found)],
                "repeats": found,
            }
    return result
