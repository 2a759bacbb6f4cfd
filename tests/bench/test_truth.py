"""The load client against a server that logs when it spoke: counts, order, stamps, freezes, failures.

Nothing here depends on how fast the machine is: stamps are compared with the server's own log.
"""

from __future__ import annotations

import itertools
import socket

import pytest
from bench_null import FAST, TRANSPORTS, drive, on_null, one

from headrace.bench.load import Client, Outcome
from headrace.bench.metrics import Bounds, summarise
from headrace.bench.null_server import Script
from headrace.bench.record import Chunk, Run, Transport
from headrace.bench.truth import Pair, compare, unseen_stall

SSE: tuple[Transport, ...] = ("sse-responses", "sse-chat", "sse-completions")
every = pytest.mark.parametrize("transport", TRANSPORTS)


def outcome_of(transport: Transport, traces: list) -> Outcome:  # type: ignore[type-arg]
    run = Run(
        transport=transport,
        started_ns=min(trace.sent_ns for trace in traces),
        ended_ns=max(trace.ended_ns for trace in traces),
        traces=traces,
        workers=[],
    )
    client = Client(
        workers=1, cpu_share=0.0, busiest_second=0.0, reads_per_s=0.0, longest_turn_s=0.0, starved_share=0.0
    )
    return Outcome(run, client)


@every
def test_stamps_lie_behind_emissions_and_counts_are_usage(transport: Transport) -> None:
    planned = [one(number, tokens=20, stream=number % 3) for number in range(9)]
    ran = on_null(FAST, transport, planned)
    found = [Pair(trace, ran.entry(f"request {trace.number}")) for trace in ran.traces]
    assert len(found) == 9 and compare(found).wrong == []
    for trace, entry in found:
        assert len(trace.chunks) == trace.output_tokens == trace.wanted_tokens == 20
        assert (trace.finish, trace.error, trace.left, trace.prompt_tokens) == ("length", None, False, 5)
        # A chunk cannot have come before its own emission, nor after the answer's end.
        assert trace.scheduled_ns == trace.sent_ns <= entry.received_ns <= entry.emits[0].at_ns
        assert trace.ended_ns >= trace.chunks[-1].at_ns >= entry.emits[-1].at_ns
        assert [chunk.at_ns for chunk in trace.chunks] == sorted(chunk.at_ns for chunk in trace.chunks)


@every
def test_streams_of_a_closed_loop_send_one_after_the_other(transport: Transport) -> None:
    ran = on_null(FAST, transport, [one(number, stream=number % 2) for number in range(8)])
    for stream in (0, 1):
        traces = [trace for trace in ran.traces if trace.number % 2 == stream]
        assert [trace.number for trace in traces] == [stream, stream + 2, stream + 4, stream + 6]
        assert all(before.ended_ns <= after.sent_ns for before, after in itertools.pairwise(traces))


@every
@pytest.mark.parametrize("merge", [2, 7])
def test_merged_tokens_are_found_in_usage(transport: Transport, merge: int) -> None:
    script = Script(first_s=0.0, gap_s=0.0005, merge=merge, split=True)
    ran = on_null(script, transport, [one(number, tokens=20) for number in range(3)])
    for trace in ran.traces:
        sent = [emit.tokens for emit in ran.entry(f"request {trace.number}").emits]
        assert [chunk.tokens for chunk in trace.chunks] == sent and sum(sent) == 20
    told = summarise([outcome_of(transport, ran.traces).run], Bounds())
    assert told["merged_token_share"] == pytest.approx((20 - len(sent)) / 20) and told["valid"]


@every
def test_empty_events_are_no_tokens(transport: Transport) -> None:
    script = Script(first_s=0.0, gap_s=0.0005, role_first=True, empty_every=2)
    ran = on_null(script, transport, [one(number, tokens=12) for number in range(3)])
    pairs = [Pair(trace, ran.entry(f"request {trace.number}")) for trace in ran.traces]
    assert len(pairs) == 3 and compare(pairs).wrong == []
    assert all(len(trace.chunks) == trace.output_tokens == 12 for trace in ran.traces)


@every
def test_a_freeze_shows_in_full_in_an_open_loop(transport: Transport) -> None:
    """The server stands still for a second with its third request; seven more are due meanwhile."""
    planned = [one(number, at=number * 0.02) for number in range(10)]
    ran = on_null(Script(first_s=0.0, gap_s=0.0005, freeze_at=3, freeze_s=1.0), transport, planned)
    assert ran.errors() == {None}
    (frozen,) = ran.log.frozen
    assert frozen[1] - frozen[0] >= 1_000_000_000
    pairs = [Pair(trace, ran.entry(f"request {trace.number}")) for trace in ran.traces]
    assert unseen_stall(pairs, frozen) == []
    # Arrivals do not wait for answers: each one's schedule is the plan's, whatever the server did.
    begin = {trace.number: trace.scheduled_ns for trace in ran.traces}
    assert all(begin[number] - begin[0] == number * 20_000_000 for number in range(10))
    # At least one request was on its way when the server stood still, so it waited that second in full.
    longest = max(trace.chunks[0].at_ns - trace.sent_ns for trace in ran.traces)
    assert longest >= frozen[1] - frozen[0]


@every
def test_a_client_that_hides_a_freeze_is_found_out(transport: Transport) -> None:
    planned = [one(number, at=number * 0.01) for number in range(4)]
    ran = on_null(Script(first_s=0.0, gap_s=0.0005, freeze_at=2, freeze_s=0.2), transport, planned)
    pairs = [Pair(trace, ran.entry(f"request {trace.number}")) for trace in ran.traces]
    assert unseen_stall(pairs, ran.log.frozen[0]) == []
    for trace, _ in pairs:
        trace.chunks[0] = Chunk(trace.scheduled_ns + 1_000, 1)
    assert len(unseen_stall(pairs, ran.log.frozen[0])) == 2


@pytest.mark.parametrize("transport", SSE)
def test_answers_may_end_with_their_connection(transport: Transport) -> None:
    script = Script(first_s=0.0, gap_s=0.0005, keep=False)
    ran = on_null(script, transport, [one(number, stream=0) for number in range(3)])
    assert ran.errors() == {None} and [len(trace.chunks) for trace in ran.traces] == [5, 5, 5]


@pytest.mark.parametrize("transport", SSE)
def test_a_kept_connection_may_be_gone(transport: Transport) -> None:
    """The server closes it behind each answer: the next request meets the end before it, or is sent twice."""
    script = Script(first_s=0.0, gap_s=0.0005, hang_up=True)
    ran = on_null(script, transport, [one(number, stream=0) for number in range(10)])
    assert ran.errors() == {None} and [len(trace.chunks) for trace in ran.traces] == [5] * 10
    assert len(ran.log.entries) == 10 and len({entry.peer for entry in ran.log.entries}) == 10


@every
def test_usage_that_is_not_told_is_not_made_up(transport: Transport) -> None:
    ran = on_null(Script(first_s=0.0, gap_s=0.0005, usage=False), transport, [one(0)])
    (trace,) = ran.traces
    assert (trace.output_tokens, trace.prompt_tokens, len(trace.chunks), trace.error) == (None, None, 5, None)


@every
def test_errors_in_the_middle_of_an_answer(transport: Transport) -> None:
    ran = on_null(Script(first_s=0.0, gap_s=0.0005, error_at=3), transport, [one(0), one(1)])
    assert ran.errors() <= {"server_error: failed as scripted", "null_error: failed as scripted"}
    assert [len(trace.chunks) for trace in ran.traces] == [3, 3]


@every
def test_refused_requests_are_told_and_the_others_go_on(transport: Transport) -> None:
    script = Script(first_s=0.0, gap_s=0.0005, refuse_every=2, status=429)
    ran = on_null(script, transport, [one(number, stream=0) for number in range(6)])
    errors = [trace.error for trace in ran.traces]
    assert errors[::2] == [None] * 3 and ran.log.refused == 3
    assert all("null_429: refused as scripted" in str(error) for error in errors[1::2])
    assert all(str(error).startswith("HTTP 429") == (transport in SSE) for error in errors[1::2])


@every
def test_a_connection_that_breaks_is_a_failure_with_the_tokens_so_far(transport: Transport) -> None:
    ran = on_null(
        Script(first_s=0.0, gap_s=0.0005, cut_at=3), transport, [one(0, stream=0), one(1, stream=0)]
    )
    assert len(ran.traces) == 2 and all("connection" in str(trace.error) for trace in ran.traces)
    # What a reset leaves of bytes on their way is up to the system; never more than was sent.
    assert all(len(trace.chunks) <= 3 and trace.output_tokens is None for trace in ran.traces)


@every
def test_a_server_that_dies(transport: Transport) -> None:
    planned = [one(number, tokens=50) for number in range(4)] + [one(4, stream=0)]
    ran = on_null(Script(first_s=0.0, gap_s=0.0005, together=4, die_at=60), transport, planned)
    assert sorted(trace.number for trace in ran.traces) == [0, 1, 2, 3, 4]
    assert None not in ran.errors() and all(trace.ended_ns >= trace.sent_ns for trace in ran.traces)
    # The one that comes after the death finds nobody.
    (late,) = [trace for trace in ran.traces if trace.number == 4]
    assert str(late.error).startswith("no connection") and late.chunks == []


@every
def test_nobody_listens(transport: Transport) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but not listening: connections are refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        _, traces, _ = drive(url, transport, [one(0), one(1, at=0.0)])
    assert [trace.error for trace in traces] == ["no connection: Connection refused"] * 2
