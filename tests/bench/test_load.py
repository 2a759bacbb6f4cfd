"""Worker processes together: shares of a plan, a common start, and when a result is refused."""

from __future__ import annotations

import msgspec
import pytest
from bench_null import FAST, one

from headrace.bench import load
from headrace.bench.capacity import measure_capacity
from headrace.bench.load import Client, Crew, LoadError, Tally, deal, find_target
from headrace.bench.null_server import NullServer, Script
from headrace.bench.probe import find_model, learn
from headrace.bench.prompts import Calibration
from headrace.bench.transports import Manner, UnfitPrompt, body, in_lane

CALM = Client(
    workers=1, cpu_share=0.3, busiest_second=0.4, reads_per_s=1000.0, longest_turn_s=0.001, starved_share=0.0
)


def test_processes_share_a_plan_and_start_together() -> None:
    planned = [one(number, stream=number % 4) for number in range(12)] + [one(12, at=0.0), one(13, at=0.0)]
    tallies: list[Tally] = []
    with NullServer(FAST) as server:
        outcome = load.run(
            find_target(server.url),
            "sse-chat",
            Manner(model="null"),
            planned,
            Crew(workers=3, patience_s=60.0),
            watch=tallies.append,
        )
        log = server.log()
    run, client = outcome
    assert sorted(trace.number for trace in run.traces) == list(range(14))
    assert all(trace.error is None and len(trace.chunks) == 5 for trace in run.traces)
    assert all(run.started_ns <= trace.scheduled_ns <= trace.ended_ns <= run.ended_ns for trace in run.traces)
    assert len(log.entries) == 14 and len(run.workers) == client.workers == 3
    assert sum(worker.events for worker in run.workers) >= 14 * 5
    assert tallies[-1].ended == 14 and tallies[-1].failed == 0
    assert client.cpu_share >= 0 and client.longest_turn_s > 0 and client.reads_per_s > 0


def test_a_worker_that_dies_ends_the_run() -> None:
    with NullServer(FAST) as server, pytest.raises(LoadError, match="a client process ended"):
        # Token ids have no place in a chat: the worker's own check ends it.
        load.run(find_target(server.url), "sse-chat", Manner(model="null"), [one(0, turns=((1, 2),))], Crew())


def test_streams_stay_whole_and_fill_sockets() -> None:
    planned = [one(number, stream=number % 8) for number in range(24)]
    for workers, group in ((3, 1), (2, 4), (8, 1), (20, 16), (1, 16)):
        shares = deal(planned, workers, group)
        assert all(shares) and len(shares) <= min(workers, 8)
        assert sorted(p.number for share in shares for p in share) == list(range(24))
        for share in shares:
            streams = {p.stream for p in share}
            assert len(share) == 3 * len(streams)
    assert [len(share) for share in deal(planned, 2, 4)] == [12, 12]
    assert [len(share) for share in deal([one(n, at=0.1) for n in range(7)], 3, 1)] == [3, 2, 2]


@pytest.mark.parametrize(
    ("fields", "capacity", "why"),
    [
        ({}, None, None),
        ({}, 2100.0, None),
        ({}, 1900.0, "read 1,000 times a second"),
        ({"cpu_share": 0.71}, None, "used 71% of a core"),
        ({"busiest_second": 0.9}, 1e9, "used 90% of a core"),
    ],
)
def test_a_client_that_is_the_bottleneck_refuses(
    fields: dict[str, float], capacity: float | None, why: str | None
) -> None:
    refusal = msgspec.structs.replace(CALM, **fields).refusal(capacity)
    assert (refusal is None) if why is None else (refusal is not None and why in refusal)


def test_the_calibration_counts_reads() -> None:
    assert measure_capacity("sse-chat", Crew()) > 0


def test_addresses() -> None:
    target = find_target("http://127.0.0.1:8123/api/v1/", "k")
    assert target == ("127.0.0.1:8123", "127.0.0.1", 8123, "/api", "k")
    assert find_target("ws://127.0.0.1").port == 80 and find_target("127.0.0.1:1").prefix == ""
    for url, why in (
        ("https://127.0.0.1", "plain http"),
        ("ftp://127.0.0.1", "not the address"),
        ("http://", "not the address"),
        ("http://127.0.0.1:port", "not the address"),
        ("http://127.0.0.1/?model=x", "not the address"),
    ):
        with pytest.raises(LoadError, match=why):
            find_target(url)


def test_what_a_server_does_not_take_is_left_out() -> None:
    asked = Manner(model="null")
    with NullServer(Script(first_s=0.0, gap_s=0.0, rejects=("ignore_eos", "max_tokens"))) as server:
        target = find_target(server.url)
        assert find_model(target, None)["id"] == "null" and find_model(target, "other") == {"id": "other"}
        learned = learn(target, "sse-chat", asked, 60.0)
        with pytest.raises(LoadError, match="null_422"):
            learn(target, "sse-completions", asked, 60.0)  # max_tokens is the only name there
    assert learned.manner == msgspec.structs.replace(asked, ignore_eos=False, limit="max_completion_tokens")
    assert learned.notes == [
        "the server does not take ignore_eos: answers may end before their wanted length"
    ]
    assert learned.calibration == Calibration(1.0, 3.0)


def test_a_server_that_counts_nothing_is_guessed_at() -> None:
    script = Script(first_s=0.0, gap_s=0.0, rejects=("stream_options",), usage=False)
    with NullServer(script) as server:
        learned = learn(find_target(server.url), "sse-chat", Manner(model="null"), 60.0)
    assert not learned.manner.usage and len(learned.notes) == 2


def test_a_key_is_sent() -> None:
    target = find_target("127.0.0.1:1", "secret")
    assert b"Authorization: Bearer secret\r\n" in target.post("/v1/responses", b"{}") and b"Bearer" not in (
        find_target("127.0.0.1:1").get("/v1/models")
    )


def test_bodies() -> None:
    manner = Manner(model="m", temperature=None, fields={"top_p": 0.5, "ignore_eos": False})
    asked = msgspec.json.decode(body("sse-chat", manner, "hi", 3, [("a", "b")]))
    assert asked == {
        "model": "m",
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "hi"},
        ],
        "max_tokens": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": False,
        "top_p": 0.5,
    }
    laned = in_lane(body("ws-responses-lanes", Manner(model="m"), "hi", 3, [("a", "b")], "r"), "x")
    socket = msgspec.json.decode(laned)
    assert socket == {
        "model": "m",
        "type": "response.create",
        "input": "hi",
        "previous_response_id": "r",
        "max_output_tokens": 3,
        "store": False,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream_id": "x",
    }
    ids = msgspec.json.decode(body("sse-completions", Manner(model="m", totals=True), (1, 2), 3))
    assert ids["prompt"] == [1, 2] and ids["stream_options"]["continuous_usage_stats"] is True
    for transport in ("sse-chat", "ws-responses"):
        with pytest.raises(UnfitPrompt):
            body(transport, manner, (1, 2), 3)  # type: ignore[arg-type]
    with pytest.raises(UnfitPrompt):
        body("sse-completions", manner, (1, 2), 3, [("a", "b")])
