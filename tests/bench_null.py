"""Runs of the load client's worker against the null server, in this process, with the server's log beside them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from headrace.bench.load import find_target
from headrace.bench.null_server import Entry, Log, NullServer, Script
from headrace.bench.record import Planned, Trace, Transport
from headrace.bench.transports import DIALECTS, Manner
from headrace.bench.worker import Job, Progress, Report, Worker

TRANSPORTS: tuple[Transport, ...] = tuple(DIALECTS)
FAST = Script(first_s=0.0, gap_s=0.0005)


class Ran(NamedTuple):
    started_ns: int
    traces: list[Trace]
    log: Log
    reports: list[Report]

    def entry(self, prompt: str) -> Entry:
        (found,) = [entry for entry in self.log.entries if entry.prompt == prompt]
        return found

    def errors(self) -> set[str | None]:
        return {trace.error for trace in self.traces}


def drive(
    url: str, transport: Transport, planned: Sequence[Planned], lanes: int = 16
) -> tuple[int, list[Trace], list[Report]]:
    """When a worker started, its traces, and what it reported on the way."""
    reports: list[Report] = []
    job = Job(
        target=find_target(url),
        transport=transport,
        manner=Manner(model="null"),
        planned=list(planned),
        lanes=lanes,
        patience_s=60.0,
    )
    worker = Worker(job, reports.append)
    worker.connect()
    started_ns = time.monotonic_ns() + 1_000_000
    done = worker.run(started_ns)
    assert not worker.lines, "every connection was closed"
    assert all(isinstance(report, Progress) for report in reports)
    return started_ns, done.traces, reports


def on_null(script: Script, transport: Transport, planned: Sequence[Planned], lanes: int = 16) -> Ran:
    """A run against a null server of its own. Afterwards the log is empty if that server died."""
    with NullServer(script) as server:
        started_ns, traces, reports = drive(server.url, transport, planned, lanes)
        log = Log(entries=[], frozen=[]) if script.die_at else server.log()
    return Ran(started_ns, traces, log, reports)


def one(number: int, tokens: int = 5, **fields: object) -> Planned:
    """A request whose prompt is its number."""
    planned = {"number": number, "stream": number, "turns": (f"request {number}",), "output_tokens": tokens}
    return Planned(**(planned | fields))  # type: ignore[arg-type]
