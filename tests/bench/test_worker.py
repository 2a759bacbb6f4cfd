"""Clients that leave, read slowly, talk in turns, share sockets or repeat until a time is over."""

from __future__ import annotations

import itertools

import pytest
from bench_null import FAST, TRANSPORTS, on_null, one

from headrace.bench.null_server import Script
from headrace.bench.record import Transport

every = pytest.mark.parametrize("transport", TRANSPORTS)
ENDLESS = Script(first_s=0.0, gap_s=0.0005)


@every
@pytest.mark.parametrize("cut", ["cancel", "close", "reset"])
def test_a_client_leaves_after_some_tokens(transport: Transport, cut: str) -> None:
    """The answer would never end in this test's time; the stream goes on with its next request."""
    ran = on_null(ENDLESS, transport, [one(0, 10_000_000, cut_after=4, cut=cut), one(1, stream=0)])
    left, after = ran.traces
    assert left.left and left.error is None and len(left.chunks) >= 4
    assert left.output_tokens is None, "nobody knows how many of these would have come"
    assert after.error is None and len(after.chunks) == 5 and after.sent_ns >= left.ended_ns
    entry = ran.entry("request 0")
    assert len(left.chunks) <= len(entry.emits)
    # Only a socket knows cancel; on a shared one everything is a cancel, as closing it would end the others.
    cancelled = transport == "ws-responses-lanes" or (transport == "ws-responses" and cut == "cancel")
    assert entry.end == ("cancelled" if cancelled else "left")
    assert left.finish == ("cancelled" if cancelled else None)


def test_a_cut_on_a_shared_socket_leaves_the_other_lanes_alone() -> None:
    planned = [one(0, 10_000_000, cut_after=2, cut="reset"), *(one(number, 200) for number in range(1, 8))]
    ran = on_null(ENDLESS, "ws-responses-lanes", planned)
    others = [trace for trace in ran.traces if trace.number]
    assert [trace.error for trace in others] == [None] * 7
    assert [len(trace.chunks) for trace in others] == [200] * 7


@every
def test_a_slow_reader_pauses_after_its_tokens(transport: Transport) -> None:
    ran = on_null(FAST, transport, [one(0, 6, read_pause=0.02), one(1, 6)])
    slow, fast = sorted(ran.traces, key=lambda trace: trace.number)
    assert slow.error is fast.error is None and len(fast.chunks) == len(slow.chunks) == 6
    # Tokens that one read brought are followed by a pause for each of them before anything else is read.
    reads: dict[int, int] = {}
    for chunk in slow.chunks:
        reads[chunk.at_ns] = reads.get(chunk.at_ns, 0) + chunk.tokens
    stamps = sorted(reads)
    for at, after in zip(stamps, [*stamps[1:], slow.ended_ns], strict=True):
        assert after == at or after - at >= reads[at] * 20_000_000


@every
def test_turns_follow_each_other_and_carry_the_conversation(transport: Transport) -> None:
    turns = ("first words", "second", "third")
    ran = on_null(FAST, transport, [one(0, 3, turns=turns, stream=0), one(1, 3, stream=0)])
    traces = [trace for trace in ran.traces if trace.number == 0]
    assert [(trace.turn, trace.error) for trace in traces] == [(0, None), (1, None), (2, None)]
    assert all(a.ended_ns <= b.sent_ns for a, b in itertools.pairwise(ran.traces))
    prompts = [entry.prompt for entry in ran.log.entries]
    if transport == "sse-completions":
        assert prompts[1] == "first words\n word word word\nsecond"
    else:
        assert prompts == [*turns, "request 1"]
    if transport.startswith("ws"):
        assert [entry.previous for entry in ran.log.entries] == [None, "resp_1", "resp_2", None]
    else:
        # History is sent again: every turn's prompt is longer by what was said.
        counts = [trace.prompt_tokens or 0 for trace in traces]
        assert counts[0] < counts[1] < counts[2]


@every
def test_turns_behind_a_failed_one_are_failures(transport: Transport) -> None:
    script = Script(first_s=0.0, gap_s=0.0005, refuse_every=2)
    ran = on_null(script, transport, [one(0, turns=("a", "b", "c", "d"))])
    assert [trace.turn for trace in ran.traces] == [0, 1, 2, 3]
    errors = [trace.error for trace in ran.traces]
    assert errors[0] is None and "null_503" in str(errors[1])
    assert errors[2:] == ["not sent: the turn before it failed"] * 2


@every
def test_a_stream_that_lasts_a_time_asks_again_with_other_words(transport: Transport) -> None:
    planned = [one(0, 2, turns=(" ".join(map(str, range(30))),), until=0.3)]
    ran = on_null(FAST, transport, planned)
    assert {trace.number for trace in ran.traces} == {0} and ran.errors() == {None}
    end = ran.started_ns + 300_000_000
    assert all(trace.ended_ns < end for trace in ran.traces[:-1]) and ran.traces[-1].ended_ns >= end
    prompts = [entry.prompt for entry in ran.log.entries]
    assert all(sorted(prompt.split()) == sorted(prompts[0].split()) for prompt in prompts)
    assert len(set(prompts)) == len(prompts)


def test_lanes_share_sockets_and_the_rest_does_not() -> None:
    planned = [one(number, 30) for number in range(10)]
    assert len({entry.peer for entry in on_null(FAST, "ws-responses-lanes", planned, 4).log.entries}) == 3
    assert len({entry.peer for entry in on_null(FAST, "ws-responses", planned).log.entries}) == 10
    assert len({entry.peer for entry in on_null(FAST, "sse-chat", planned).log.entries}) == 10


def test_connections_are_kept_between_requests() -> None:
    ran = on_null(FAST, "sse-chat", [one(number, stream=0) for number in range(5)])
    assert len({entry.peer for entry in ran.log.entries}) == 1


def test_a_slow_reader_has_a_socket_of_its_own() -> None:
    planned = [one(0, 4, read_pause=0.01), *(one(number, 4) for number in range(1, 5))]
    peers = {entry.prompt: entry.peer for entry in on_null(FAST, "ws-responses-lanes", planned).log.entries}
    assert len(set(peers.values())) == 2
    assert list(peers.values()).count(peers["request 0"]) == 1


@every
def test_open_loop_requests_do_not_wait_for_each_other(transport: Transport) -> None:
    """No answer begins before all have come; more are due than there are connections to begin with."""
    planned = [one(number, 2, at=0.0) for number in range(80)]
    ran = on_null(Script(first_s=0.0, gap_s=0.0005, together=80), transport, planned)
    assert ran.errors() == {None} and len(ran.traces) == 80
    assert {trace.scheduled_ns for trace in ran.traces} == {ran.started_ns}
    assert all(trace.sent_ns >= trace.scheduled_ns for trace in ran.traces)


def test_progress_is_told() -> None:
    ran = on_null(FAST, "sse-chat", [one(0, 2, until=0.6)])
    assert ran.reports, "one every quarter of a second"
    ended = [report.ended for report in ran.reports]  # type: ignore[union-attr]
    assert ended == sorted(ended) and ended[-1] <= len(ran.traces)
