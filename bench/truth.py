"""Whether the load client tells the truth: what it reports, held against a server that logs when it spoke.

    headrace bench truth

For every transport: how far reported times to first token, gaps and token counts are from what the null server
wrote down, with plain answers, with several tokens in one event, and with events that carry none. Then a freeze of
the whole server during an open loop, which must show in full. Exit status 1 if anything is off. Wants an idle
machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from headrace.bench.load import Crew, Outcome, find_target, run
from headrace.bench.metrics import Bounds, summarise
from headrace.bench.null_server import Entry, Log, NullServer, Script
from headrace.bench.record import Planned, Trace, Transport
from headrace.bench.surroundings import surroundings
from headrace.bench.transports import DIALECTS, Manner

BOUND_MS = 0.2  # at most this much may the medians be off
SCRIPTS = {
    "plain": Script(first_s=0.01, gap_s=0.002),
    "merged": Script(first_s=0.01, gap_s=0.002, merge=3),
    "empty events": Script(first_s=0.01, gap_s=0.002, role_first=True, empty_every=4),
}


class Pair(NamedTuple):
    """One request as the client reports it and as the server logged it."""

    trace: Trace
    entry: Entry


class Errors(NamedTuple):
    """By how much reports differ from the log, in ms; wrong: sentences about what is wrong whatever the time."""

    first: list[float]
    gaps: list[float]
    wrong: list[str]


def pairs(outcome: Outcome, planned: Sequence[Planned], log: Log) -> list[Pair]:
    """Traces with their log entries. Prompts tell them apart, so they must differ."""
    entries = {entry.prompt: entry for entry in log.entries}
    assert len(entries) == len(log.entries), "two requests with the same prompt"
    prompts = {one.number: one.turns for one in planned}
    return [
        Pair(trace, entries[str(prompts[trace.number][trace.turn])])
        for trace in outcome.run.traces
        if str(prompts[trace.number][trace.turn]) in entries
    ]


def compare(found: Sequence[Pair]) -> Errors:
    """Reports against the log. A stamp before its own emission, another count or another order is wrong."""
    first, gaps, wrong = [], [], []
    for trace, entry in found:
        if trace.error is not None:
            wrong.append(f"request {trace.number} failed: {trace.error}")
            continue
        if [chunk.tokens for chunk in trace.chunks] != [emit.tokens for emit in entry.emits]:
            wrong.append(f"request {trace.number}: tokens per chunk differ from those that were sent")
            continue
        if trace.output_tokens is not None and trace.output_tokens != sum(
            emit.tokens for emit in entry.emits
        ):
            wrong.append(f"request {trace.number}: usage and log differ")
        late = [chunk.at_ns - emit.at_ns for chunk, emit in zip(trace.chunks, entry.emits, strict=True)]
        if min(late) < 0 or trace.sent_ns > entry.received_ns:
            wrong.append(f"request {trace.number}: something arrived before it was sent")
        first.append(late[0] / 1e6)
        gaps += [(late[place] - late[place - 1]) / 1e6 for place in range(1, len(late))]
    return Errors(first, gaps, wrong)


def plan(streams: int, requests: int, tokens: int) -> list[Planned]:
    """A closed loop with a prompt of its own in every request."""
    return [
        Planned(number=number, stream=number % streams, turns=(f"request {number}",), output_tokens=tokens)
        for number in range(requests)
    ]


def arrivals(count: int, rate: float, tokens: int) -> list[Planned]:
    """An open loop, evenly spaced."""
    return [
        Planned(
            number=number, at=number / rate, stream=number, turns=(f"arrival {number}",), output_tokens=tokens
        )
        for number in range(count)
    ]


def check_stamps(transport: Transport, name: str, crew: Crew) -> dict[str, Any]:
    """One transport with one script: 4 streams, a token each 2 ms on every one of them."""
    planned = plan(4, 24, 100)
    with NullServer(SCRIPTS[name]) as server:
        outcome = run(find_target(server.url), transport, Manner(model="null"), planned, crew)
        errors = compare(pairs(outcome, planned, server.log()))
    row: dict[str, Any] = {"transport": transport, "script": name, "wrong": errors.wrong}
    for what, values in (("ttft", errors.first), ("itl", errors.gaps)):
        sizes = sorted(abs(value) for value in values)
        row[f"{what}_off_p50_ms"] = statistics.median(sizes) if sizes else None
        row[f"{what}_off_p99_ms"] = sizes[int(0.99 * len(sizes))] if sizes else None
    row["passed"] = not errors.wrong and all(
        row[f"{what}_off_p50_ms"] is not None and row[f"{what}_off_p50_ms"] <= BOUND_MS
        for what in ("ttft", "itl")
    )
    row["client"] = msgspec.structs.asdict(outcome.client)
    return row


def unseen_stall(found: Sequence[Pair], frozen: tuple[int, int]) -> list[str]:
    """What an open loop should have shown of a freeze and did not: every request that was due before its end and
    read after it waited at least that long. Empty if all is told; also says so if none was caught in it."""
    caught = [
        pair for pair in found if pair.trace.scheduled_ns < frozen[1] and pair.entry.received_ns >= frozen[1]
    ]
    missing = [] if caught else ["no request was caught in the freeze"]
    for trace, _ in caught:
        waited = frozen[1] - trace.scheduled_ns
        told = trace.chunks[0].at_ns - trace.scheduled_ns if trace.chunks else None
        if told is None or told < waited:
            missing.append(
                f"request {trace.number} waited {waited / 1e6:.1f} ms for the server, but tells {told} ns"
            )
    return missing


def check_freeze(transport: Transport, crew: Crew) -> dict[str, Any]:
    """A second in which the server stands still, in the middle of an open loop of 20 requests a second."""
    planned = arrivals(60, 20.0, 20)
    with NullServer(Script(first_s=0.005, gap_s=0.001, freeze_at=20, freeze_s=1.0)) as server:
        outcome = run(find_target(server.url), transport, Manner(model="null"), planned, crew)
        log = server.log()
    found = pairs(outcome, planned, log)
    wrong = unseen_stall(found, log.frozen[0]) + compare(found).wrong
    summary = summarise([outcome.run], Bounds())
    return {
        "transport": transport,
        "script": "freeze",
        "wrong": wrong,
        "frozen_ms": (log.frozen[0][1] - log.frozen[0][0]) / 1e6,
        "caught": sum(pair.trace.scheduled_ns < log.frozen[0][1] <= pair.entry.received_ns for pair in found),
        "median_ttft_ms": summary["median_ttft_ms"],
        "max_ttft_ms": summary["max_ttft_ms"],
        "passed": not wrong,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """`headrace bench truth`. Prints what was compared, pass or fail, and the JSON as the last line."""
    reader = argparse.ArgumentParser(
        prog="headrace bench truth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    reader.add_argument("--transport", action="append", choices=list(DIALECTS), help="[all]")
    reader.add_argument("--workers", type=int, default=1, help="client processes [1]")
    reader.add_argument("--out", help="write the JSON there too")
    given = reader.parse_args(argv)
    crew = Crew(workers=given.workers, patience_s=30.0)
    transports: list[Transport] = given.transport or list(DIALECTS)
    rows = []
    print(
        f"{'':<36}{'TTFT off, ms':>20}{'gaps off, ms':>20}\n{'':<36}{'p50':>10}{'p99':>10}{'p50':>10}{'p99':>10}"
    )
    for transport in transports:
        for name in SCRIPTS:
            row = check_stamps(transport, name, crew)
            rows.append(row)
            cells = "".join(
                "         –"
                if row[f"{what}_off_{share}_ms"] is None
                else f"{row[f'{what}_off_{share}_ms']:>10.3f}"
                for what in ("ttft", "itl")
                for share in ("p50", "p99")
            )
            print(f"{transport:<20}{name:<16}{cells}  {verdict(row)}", flush=True)
    for transport in transports:
        row = check_freeze(transport, crew)
        rows.append(row)
        print(
            f"{transport:<20}{'freeze':<16} {row['frozen_ms']:.0f} ms, {row['caught']} requests caught, "
            f"TTFT median {row['median_ttft_ms']:.1f} max {row['max_ttft_ms']:.0f} ms  {verdict(row)}",
            flush=True,
        )
    passed = all(row["passed"] for row in rows)
    for row in rows:
        for sentence in row["wrong"][:5]:
            print(f"{row['transport']}, {row['script']}: {sentence}")
    print(
        f"{'PASSED' if passed else 'FAILED'}: medians within {BOUND_MS} ms, counts equal, freezes shown in full"
    )
    document = json.dumps(
        {"bench": "truth", **surroundings(), "bound_ms": BOUND_MS, "passed": passed, "rows": rows}
    )
    if given.out:
        with open(given.out, "w", encoding="utf-8") as file:
            file.write(document + "\n")
    print(document)
    return 0 if passed else 1


def verdict(row: dict[str, Any]) -> str:
    return "pass" if row["passed"] else "FAIL"
