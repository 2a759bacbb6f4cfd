"""How much a client process can take, measured against the null server: what every run's rate is held against."""

from __future__ import annotations

from headrace.bench.load import Crew, LoadError, find_target, run
from headrace.bench.null_server import NullServer, Script
from headrace.bench.record import Planned, Transport
from headrace.bench.transports import Manner

STREAMS = 32
TOKENS = 1000


def measure_capacity(transport: Transport, crew: Crew) -> float:
    """Reads per second of its CPU time that one worker manages while a null server floods it with single tokens.

    A second of CPU time, not of the clock: neighbours on a shared machine cost waiting, which a run shows by
    itself. Reads of a flood bring more than one token at times, so this errs towards refusing.
    """
    flood = Script(first_s=0.05, gap_s=0.0)
    planned = [
        Planned(number=stream, stream=stream, turns=("flood",), output_tokens=TOKENS)
        for stream in range(STREAMS)
    ]
    one = Crew(workers=1, cores=crew.cores[:1], lanes=crew.lanes, patience_s=30.0)
    with NullServer(flood) as server:
        outcome = run(find_target(server.url), transport, Manner(model="null"), planned, one)
    if wrong := next((trace.error for trace in outcome.run.traces if trace.error), None):
        raise LoadError(f"the calibration against the null server failed: {wrong}")
    return outcome.client.reads_per_s / outcome.client.cpu_share
