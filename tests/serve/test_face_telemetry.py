"""What readers are told of the time of their answers (M8): the sums, the order, and that nobody else hears of it.

The step loop lives by the test's clock here: every time is exact, and is asked to be.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from face_bench import ALICE, FaceBench, Socket
from face_said import finals, text
from strict_responses import check_sequence

from headrace.runtime.interface import StepBoard, StepReport, StreamMeter, TokenStream
from headrace.runtime.telemetry import UNTOLD, Waiting
from headrace.server.faces.telemetry import row_name, steps_told
from headrace.server.protocol import extension as x
from headrace.server.protocol.codec import encode

SUMS = ("queue_ms", "prefill_ms", "steps_ms", "waited_ms", "send_lag_ms")


def us(milliseconds: float) -> int:
    return round(milliseconds * 1000)


class Watched:
    """A bench on the test's clock; each event that a socket says has the moment at which it was said."""

    def __init__(self, **sizes: Any) -> None:
        self.bench = FaceBench(gated=True, virtual=True, **sizes)
        self.at: dict[Socket, list[float]] = {}
        self.asked: dict[str, float] = {}

    def socket(self, **query: str) -> Socket:
        socket = self.bench.socket(**query)
        self.at[socket] = []
        return socket

    def ask(self, socket: Socket, input: str = "hello", **fields: Any) -> None:
        self.asked[fields.get("stream_id", "")] = self.bench.clock.now
        socket.create(input, **fields)

    async def turn(self) -> None:
        """The event loop does all that is due, and every socket that reads has said what it has to say."""
        for _ in range(5):
            await asyncio.sleep(0)
        self.bench.flush()
        for socket, at in self.at.items():
            at += [self.bench.clock.now] * (len(socket.said) - len(at))

    async def step(self, seconds: float) -> None:
        """So much time passes, then a step lands."""
        self.bench.clock.advance(seconds)
        self.bench.engine.land(1)
        await self.turn()

    async def until(self, holds: Callable[[], Any], seconds: float = 0.01) -> None:
        for _ in range(3000):
            if holds():
                return
            await self.step(seconds)
        raise AssertionError("the condition was not reached")

    def told(self, socket: Socket, response_id: str) -> tuple[dict[str, Any], float]:
        """The terminal event of a response, and when it was said."""
        for event, at in zip(socket.said, self.at[socket], strict=True):
            if event["type"].startswith("response.") and event.get("response", {}).get("id") == response_id:
                last = event["response"], at
        assert last[0]["status"] != "in_progress"
        return last


def of(socket: Socket, *kinds: str) -> list[dict[str, Any]]:
    return [event for event in socket.said if event["type"] in kinds]


def rows(socket: Socket, response_id: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Every step that a response was in, and its own part of it."""
    return [
        (step, row)
        for step in of(socket, "x.step")
        for row in step["streams"]
        if row["response_id"] == response_id
    ]


def summary(response: dict[str, Any]) -> dict[str, Any]:
    said = response["metadata"]["x_telemetry"]
    assert len(said) <= 512
    return dict(json.loads(said))


def check_sums(watched: Watched, socket: Socket, response_id: str, asked: float) -> dict[str, Any]:
    """The summary adds up to the time from the request to the terminal event, and is what the steps add up to."""
    response, at = watched.told(socket, response_id)
    found = summary(response)
    assert us(found["total_ms"]) == sum(us(found[name]) for name in SUMS)
    assert us(found["total_ms"]) == round((at - asked) * 1e6)
    return found


def check_steps(watched: Watched, socket: Socket, response_id: str, found: dict[str, Any]) -> None:
    """The same, from the events alone, and in their order."""
    response, _ = watched.told(socket, response_id)
    mine = rows(socket, response_id)
    tokens = [row["token_index"] for _, row in mine if "token_index" in row]
    assert tokens == list(range(tokens[0], tokens[0] + len(tokens))) if tokens else True
    spent = [us(row["queue_ms"]) + us(step["step_ms"]) for step, row in mine]
    if response["status"] in ("completed", "incomplete"):
        assert tokens and tokens[-1] + 1 == response["usage"]["output_tokens"]
        lag = us(mine[-1][1]["send_lag_ms"])
        assert sum(spent) + us(found["send_lag_ms"]) == us(found["total_ms"])
        assert lag <= us(found["send_lag_ms"]), "steps are told at once, the end when its reader has credit"
    first = next((place for place, (_, row) in enumerate(mine) if "token_index" in row), len(mine))
    after = mine[first + 1 :]
    if tokens:
        assert us(found["queue_ms"]) == us(mine[0][1]["queue_ms"])
        assert us(found["queue_ms"]) + us(found["prefill_ms"]) == sum(spent[: first + 1])
        assert us(found["steps_ms"]) == sum(us(step["step_ms"]) for step, _ in after)
        assert found["steps"] == len(after)
    assert found["graph_hits"] == sum(step["graph"] == "hit" for step, _ in mine)


async def test_one_answer_alone_from_its_arrival_to_its_end_told() -> None:
    watched = Watched()
    bench = watched.bench
    bench.engine.captured = frozenset({1})
    socket = watched.socket()
    prompt = "x" * 150  # three chunks of 64 tokens
    watched.ask(socket, prompt, x_telemetry="step", max_output_tokens=3)
    bench.clock.advance(0.002)
    await watched.turn()
    for seconds in (0.030, 0.020, 0.010, 0.004, 0.005):
        await watched.step(seconds)
    size = len(bench.prompts[0])
    assert 128 < size <= 192
    run = finals(socket)[0]
    name = run["id"]
    kinds = [event["type"] for event in socket.said if not event["type"].startswith("response.output")]
    kinds = [kind for kind in kinds if not kind.startswith("response.content")]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "x.prefill.progress",
        *["x.step", "x.prefill.progress"] * 3,
        "x.step",
        "x.step",
        "response.incomplete",
    ]
    progress = [
        {key: each[key] for key in ("done", "total", "cached", "eta_ms")}
        for each in of(socket, "x.prefill.progress")
    ]
    left = size - 64
    assert progress == [
        {"done": 0, "total": size, "cached": 0, "eta_ms": None},
        {"done": 64, "total": size, "cached": 0, "eta_ms": round(30_000 * left // 64 / 1000)},
        {"done": 128, "total": size, "cached": 0, "eta_ms": round(50_000 * (size - 128) // 128 / 1000)},
        {"done": size, "total": size, "cached": 0, "eta_ms": 0},
    ]
    common = {"batch": 1, "bucket": 1}
    row = {"response_id": name, "queue_ms": 0.0, "send_lag_ms": 0.0, "draft_accepted": 0}
    steps = of(socket, "x.step")
    assert steps[0] == {
        "type": "x.step", "step_id": 0, "step_ms": 30.0, **common, "graph": "eager",
        "prefill_tokens_in_step": 64, "streams": [{**row, "queue_ms": 2.0}],
    }  # fmt: skip
    assert steps[2]["streams"] == [{**row, "token_index": 0}]
    assert steps[3] == {
        "type": "x.step", "step_id": 3, "step_ms": 4.0, **common, "graph": "hit",
        "prefill_tokens_in_step": 0, "streams": [{**row, "token_index": 1}],
    }  # fmt: skip
    assert summary(run) == {
        "queue_ms": 2.0, "prefill_ms": 60.0, "steps_ms": 9.0, "waited_ms": 0.0, "send_lag_ms": 0.0,
        "total_ms": 71.0, "steps": 2, "graph_hits": 2, "recomputed_tokens": 0,
    }  # fmt: skip
    found = check_sums(watched, socket, name, watched.asked[""])
    check_steps(watched, socket, name, found)
    assert bench.engine.replays == found["graph_hits"] == bench.runtime.stats()["graph_replays"]
    assert bench.runtime.stats()["eager_steps"] == 3
    check_sequence([raw for raw in socket.raw if '"x.' not in raw])
    socket.drop()
    await bench.baseline()


async def test_who_waits_hears_of_each_place_in_the_line_and_of_a_guess() -> None:
    watched = Watched(slots=1)
    socket = watched.socket()
    for lane in ("a", "b", "c"):
        watched.ask(socket, stream_id=lane, x_telemetry="step", max_output_tokens=4)
        await watched.turn()
    assert [(each["stream_id"], each["position"]) for each in of(socket, "x.queue")] == [("b", 1), ("c", 2)]
    await watched.until(lambda: len(finals(socket)) == 3)
    told = [(each["stream_id"], each["position"], each["eta_ms"]) for each in of(socket, "x.queue")]
    # When "b" gets its slot, "c" is next: "b" will take four steps of 10 ms, as "a" did.
    assert told == [("b", 1, None), ("c", 2, None), ("c", 1, 40)]
    waits = [
        next(us(row["queue_ms"]) for _, row in rows(socket, run["id"]))
        for run in sorted(finals(socket), key=lambda run: summary(run)["queue_ms"])
    ]
    assert waits == [0, 40_000, 80_000]
    socket.drop()
    await watched.bench.baseline()


async def test_streams_of_one_socket_share_their_steps_and_others_hear_of_none() -> None:
    watched = Watched()
    both, alone, stock = watched.socket(), watched.socket(), watched.socket()
    for lane in ("a", "b"):
        watched.ask(both, stream_id=lane, x_telemetry="step", max_output_tokens=6)
    watched.ask(alone, x_telemetry="response", max_output_tokens=6)
    stock.create(max_output_tokens=6)
    stock.create(max_output_tokens=6, x_telemetry="off")
    await watched.until(lambda: len(finals(both)) == 2 and finals(alone) and len(finals(stock)) == 2)
    steps = of(both, "x.step")
    assert len({step["step_id"] for step in steps}) == len(steps), "one event for a step of a socket"
    names = {run["id"] for run in finals(both)}
    for step in steps:
        assert {row["response_id"] for row in step["streams"]} == names and step["batch"] >= 2
        plan = watched.bench.engine.plans[step["step_id"]]
        assert step["batch"] == len(plan.rows) and step["prefill_tokens_in_step"] == plan.prefill_tokens
    assert not [event for event in alone.said + stock.said if event["type"].startswith("x.")]
    assert check_sums(watched, alone, finals(alone)[0]["id"], watched.asked[""])["steps"] == 5
    assert not any(run["metadata"] for run in finals(stock))
    for socket in (both, alone, stock):
        socket.drop()
    await watched.bench.baseline()


async def test_what_a_pause_cost_is_told_as_waiting_and_what_was_lost_as_recomputed() -> None:
    watched = Watched(page_count=10, page_size=4, slots=4)
    bench = watched.bench
    bench.scheduler.ahead_tokens = 0
    old, young = watched.socket(), watched.socket()
    watched.ask(old, "a", stream_id="old", x_telemetry="response", max_output_tokens=12)
    await watched.until(lambda: len(bench.prompts) == 1 and bench.scheduler.running)
    watched.ask(young, "b", stream_id="young", x_telemetry="step", max_output_tokens=12)
    await watched.until(lambda: finals(old) and finals(young))
    assert bench.scheduler.counters.retractions > 0, "the pool is too small for both"
    (run,) = finals(young)
    found = check_sums(watched, young, run["id"], watched.asked["young"])
    check_steps(watched, young, run["id"], found)
    assert found["recomputed_tokens"] > 0 and us(found["waited_ms"]) > 0
    again = of(young, "x.prefill.progress")[-1]
    assert again["done"] == again["total"] > len(bench.prompts[1]), "it has read its own words again"
    assert of(young, "x.queue"), "it stood in the line again"
    for socket in (old, young):
        socket.drop()
    await bench.baseline()


async def test_a_paused_reader_sees_its_own_slowness_and_nothing_is_told_again_after_a_resume() -> None:
    watched = Watched()
    bench = watched.bench
    first = watched.socket(ext="1")
    watched.ask(first, x_telemetry="step", x_credit=4, max_output_tokens=9)
    await watched.until(lambda: len(of(first, "x.step")) == 6)
    assert len("".join(event["delta"] for event in of(first, "response.output_text.delta"))) == 4
    created = of(first, "response.created")[0]["response"]
    last = max(event["sequence_number"] for event in first.said if "sequence_number" in event)
    first.drop(1006)
    for _ in range(2):
        await watched.step(0.01)
    second = watched.socket(ext="1")
    second.send(
        {
            "type": "x.resume",
            "response_id": created["id"],
            "starting_after": last,
            "resume_token": created["x_resume_token"],
        }
    )
    second.send({"type": "x.credit", "tokens": 100})
    await watched.until(lambda: finals(second))
    assert [row["token_index"] for _, row in rows(second, created["id"])] == [8], "6 and 7 landed meanwhile"
    found = check_sums(watched, second, created["id"], watched.asked[""])
    assert found["steps"] == 8 and us(found["waited_ms"]) == 0
    assert "".join(e["delta"] for e in of(first, "response.output_text.delta")) + "".join(
        e["delta"] for e in of(second, "response.output_text.delta")
    ) == text(finals(second)[0])
    second.drop()
    await bench.baseline()


async def test_a_fork_goes_on_counting_from_what_it_keeps() -> None:
    watched = Watched()
    socket = watched.socket(ext="1")
    watched.ask(socket, stream_id="a", x_telemetry="step", max_output_tokens=8)
    await watched.until(lambda: len(of(socket, "x.step")) == 5)
    parent = of(socket, "response.created")[0]["response"]["id"]
    at = watched.bench.clock.now
    socket.send({"type": "x.fork", "response_id": parent, "stream_id": "b", "at_token": 3})
    await watched.until(lambda: len(finals(socket)) == 2)
    fork = next(run["id"] for run in finals(socket) if run["id"] != parent)
    assert [row["token_index"] for _, row in rows(socket, fork)] == [3, 4, 5, 6, 7]
    check_steps(watched, socket, fork, check_sums(watched, socket, fork, at))
    socket.send(
        {"type": "x.fork", "response_id": parent, "stream_id": "c", "at_token": 3, "x_telemetry": "off"}
    )
    before = len(of(socket, "x.step"))
    await watched.until(lambda: len(finals(socket)) == 3)
    assert len(of(socket, "x.step")) == before
    socket.drop()
    await watched.bench.baseline()


@pytest.mark.parametrize("when", ["waiting", "reading", "writing"])
async def test_a_cancelled_answer_says_where_its_time_went(when: str) -> None:
    watched = Watched(slots=1)
    other, socket = watched.socket(), watched.socket()
    if when == "waiting":
        other.create(max_output_tokens=30)
        await watched.step(0.01)
    watched.ask(socket, "x" * 150, x_telemetry="step", max_output_tokens=40)
    for _ in range(5 if when == "writing" else 2):
        await watched.step(0.01)
    watched.bench.clock.advance(0.003)
    socket.send({"type": "response.cancel"})
    watched.bench.clock.advance(0.002)
    await watched.turn()
    (run,) = finals(socket)
    assert run["status"] == "cancelled"
    found = check_sums(watched, socket, run["id"], watched.asked[""])
    check_steps(watched, socket, run["id"], found)
    assert us(found["send_lag_ms"]) == 2000
    assert bool(found["steps"]) is (when == "writing")
    assert bool(found["prefill_ms"]) is (when != "waiting")
    for each in (other, socket):
        each.drop()
    await watched.bench.baseline()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("end", ["stop", "length"])
async def test_an_answer_that_is_over_at_once_begins_before_its_steps(count: int, end: str) -> None:
    watched = Watched(eos=frozenset(range(256)) if end == "stop" else frozenset())
    socket = watched.socket()
    socket.wire.reading = False
    for number in range(count):
        watched.ask(socket, stream_id=f"s{number}", x_telemetry="step", max_output_tokens=1)
    for _ in range(3):
        await watched.step(0.25)
    socket.wire.reading = True
    await watched.until(lambda: len(finals(socket)) == count)
    for run in finals(socket):
        mine = [
            event["type"]
            for event in socket.said
            if run["id"] in json.dumps(event) and event["type"] != "response.in_progress"
        ]
        assert mine[0] == "response.created" and mine[-1].startswith("response.") and "x.step" in mine
        check_steps(watched, socket, run["id"], check_sums(watched, socket, run["id"], watched.asked["s0"]))
        assert us(summary(run)["send_lag_ms"]) == 260_000, "the reader was too slow"
    socket.drop()
    await watched.bench.baseline()


async def test_whatever_happens_the_sums_are_exact() -> None:
    seen: Counter[str] = Counter()
    for seed in range(60):
        await whatever_happens(random.Random(seed), seen)
    assert all(
        seen[what] > 3 for what in ("recomputed", "cancelled", "forked", "waited", "slow", "hit", "queued")
    ), seen


async def whatever_happens(rng: random.Random, seen: Counter[str]) -> None:
    """One life of a server: answers that are asked for, read, not read, cut, forked and changed in any order."""
    watched = Watched(
        page_count=rng.choice((14, 40)),
        page_size=4,
        slots=rng.choice((2, 4)),
        depth=rng.choice((1, 2)),
        eos=frozenset(rng.sample(range(97, 123), rng.choice((0, 1)))),
    )
    bench = watched.bench
    bench.engine.captured = frozenset({1, 2})
    bench.scheduler.ahead_tokens = rng.choice((0, 64))
    sockets = [watched.socket(ext="1") for _ in range(2)]
    asked: dict[str, tuple[Socket, float, str]] = {}

    def moment() -> float:
        return rng.choice((0.0, 0.000_001, 0.000_37, 0.004, 0.012_345))

    for number in range(60):
        socket = rng.choice(sockets)
        lane = f"lane-{len(asked)}"
        running = [job.response.run for each in sockets for job in each.session._jobs.values()]
        match rng.choice(("create", "step", "step", "step", "cancel", "read", "credit", "fork", "update")):
            case "create" if len(asked) < 12 and number < 45:
                level = rng.choice(("step", "step", "response", None))
                asked[lane] = socket, bench.clock.now, str(level)
                more: dict[str, Any] = {"x_credit": rng.randrange(6)} if rng.random() < 0.3 else {}
                if level is not None:
                    more["x_telemetry"] = level
                size = rng.choice((1, 9))
                socket.create("x" * size, stream_id=lane, max_output_tokens=rng.randrange(1, 14), **more)
            case "cancel" if running:
                run = rng.choice(running)
                asked_on = asked[str(run.lane)][0]
                asked_on.send({"type": "response.cancel", "stream_id": run.lane})
            case "credit" if asked:
                name = rng.choice(list(asked))
                asked[name][0].send({"type": "x.credit", "stream_id": name, "tokens": rng.randrange(1, 9)})
            case "read":
                socket.wire.reading = not socket.wire.reading
            case "fork" if running and len(asked) < 12:
                run = rng.choice(running)
                parent_of, _, level = asked[str(run.lane)]
                if run.stream.head and run.stream.params is not None:
                    asked[lane] = parent_of, bench.clock.now, level
                    at = rng.randrange(run.stream.head + 1)
                    parent_of.send(
                        {"type": "x.fork", "response_id": run.id, "stream_id": lane, "at_token": at}
                    )
            case "update" if running:
                run = rng.choice(running)
                asked[str(run.lane)][0].send(
                    {"type": "x.update", "response_id": run.id, "temperature": rng.random()}
                )
            case _:
                await watched.step(moment())
        bench.clock.advance(moment())
        if rng.random() < 0.7:
            await watched.turn()
    for socket in sockets:
        socket.wire.reading = True
        for lane, (asked_on, _, _) in asked.items():
            if asked_on is socket:
                socket.send({"type": "x.credit", "stream_id": lane, "tokens": 100})
    await watched.until(lambda: not bench.loop.live and not bench.loop.flight and not bench.scheduler.waiting)
    await watched.turn()
    levels = {}
    for socket in sockets:
        assert not of(socket, "response.failed"), "nothing fails here"
        for run in finals(socket):
            (created,) = [e for e in of(socket, "response.created") if e["response"]["id"] == run["id"]]
            lane = created["stream_id"]
            _, at, level = asked[lane]
            levels[run["id"]] = level
            if level == "None":
                assert "x_telemetry" not in run["metadata"]
                continue
            found = check_sums(watched, socket, run["id"], at)
            if level == "step":
                check_steps(watched, socket, run["id"], found)
            seen["recomputed"] += bool(found["recomputed_tokens"])
            seen["cancelled"] += run["status"] == "cancelled"
            seen["forked"] += "x_forked_from" in run
            seen["waited"] += bool(found["waited_ms"])
            seen["slow"] += bool(found["send_lag_ms"])
            seen["hit"] += bool(found["graph_hits"])
        seen["queued"] += len(of(socket, "x.queue"))
        ids = [step["step_id"] for step in of(socket, "x.step")]
        assert ids == sorted(set(ids)), "each step once, in order"
        for step in of(socket, "x.step"):
            plan = bench.engine.plans[step["step_id"]]
            assert step["batch"] == len(plan.rows) and step["prefill_tokens_in_step"] == plan.prefill_tokens
            assert all(levels[row["response_id"]] == "step" for row in step["streams"])
        check_order(socket)
    assert not bench.loop.meters.on
    for socket in sockets:
        socket.drop()
    await bench.baseline()


def check_order(socket: Socket) -> None:
    """Nothing of ours names a response before its beginning or behind its end."""
    begun: set[str] = set()
    for event in socket.said:
        if event["type"] == "response.created":
            begun.add(event["response"]["id"])
        elif event["type"] in ("response.completed", "response.incomplete"):
            begun.discard(event["response"]["id"])
        elif event["type"] == "x.step":
            assert {row["response_id"] for row in event["streams"]} <= begun
        elif event["type"] in ("x.queue", "x.prefill.progress"):
            assert event["response_id"] in begun


def test_an_event_put_together_by_hand_is_what_its_type_would_say() -> None:
    board = StepBoard()
    clock = iter((0.0, 0.0))
    stream = TokenStream(lambda stream: None, opened=0.0)
    meter = StreamMeter(stream, lambda: next(clock), board)
    meter.name = row_name("resp_1")
    report = StepReport(7, 1234, 10_000, 3, 4, True, 16)
    board.row(report, (meter, 5, 1))
    board.row(report, (meter, None, 0))
    board.told_at = 10_250
    (said,) = steps_told(board)
    streams = [
        x.StepStream(response_id="resp_1", token_index=5, queue_ms=0.001, send_lag_ms=0.25, draft_accepted=0),
        x.StepStream(response_id="resp_1", queue_ms=0.0, send_lag_ms=0.25, draft_accepted=0),
    ]
    step = x.Step(
        step_id=7, step_ms=1.234, batch=3, bucket=4, graph="hit", prefill_tokens_in_step=16, streams=streams
    )
    assert unpack_json(said) == json.loads(encode(step)) and said == encode(step).decode()
    assert steps_told(board) == []


def unpack_json(raw: str) -> Any:
    return json.loads(raw)


def test_a_reader_that_never_reads_is_told_how_many_steps_it_missed() -> None:
    board = StepBoard()
    meter = StreamMeter(TokenStream(lambda stream: None, opened=0.0), lambda: 0.0, board)
    meter.name = row_name("resp_1")
    board.notice(meter, Waiting(1, None))
    for number in range(UNTOLD + 10):
        board.row(StepReport(number, 1, number, 1, 1, False, 0), (meter, number, 0))
    assert len(board.news) == UNTOLD
    said = [json.loads(raw) for raw in steps_told(board)]
    assert said[0]["skipped"] == 10 and said[0]["step_id"] == 10
    assert not any("skipped" in event for event in said[1:])


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"x_telemetry": "all"}, "invalid_value", "x_telemetry"),
        ({"x_telemetry": True}, "invalid_value", "x_telemetry"),
        ({"x_telemetry": "step", "metadata": {"x_telemetry": "mine"}}, "invalid_value", "metadata"),
    ],
)
async def test_what_cannot_be_told_is_refused_by_name(fields: Any, code: str, param: str) -> None:
    bench = FaceBench()
    socket = bench.socket()
    socket.create(**fields)
    bench.flush()
    (error,) = of(socket, "error")
    assert (error["error"]["code"], error["error"]["param"]) == (code, param)
    assert not bench.asks
    fetch = bench.respond(stream=True, **fields)
    assert (fetch.status, fetch.error["code"], fetch.error["param"]) == (400, code, param)


async def test_other_tenants_are_not_told_of() -> None:
    watched = Watched()
    mine, theirs = watched.socket(), watched.socket()
    assert mine.wire.tenant is theirs.wire.tenant is ALICE
    watched.ask(mine, x_telemetry="step", max_output_tokens=5)
    theirs.create(max_output_tokens=5)
    await watched.until(lambda: finals(mine) and finals(theirs))
    said = "".join(raw for raw in mine.raw)
    assert finals(theirs)[0]["id"] not in said, "a batch is a number, never a name"
    for socket in (mine, theirs):
        socket.drop()
    await watched.bench.baseline()


async def test_branches_share_their_steps_and_each_has_sums_of_its_own() -> None:
    watched = Watched()
    socket = watched.socket(ext="1")
    watched.ask(socket, stream_id="a", x_telemetry="step", x_branches={"n": 2, "at": "start"})
    await watched.until(lambda: len(finals(socket)) == 2)
    for run in finals(socket):
        found = summary(run)
        assert us(found["total_ms"]) == sum(us(found[name]) for name in SUMS)
        check_steps(watched, socket, run["id"], found)
    ids = [step["step_id"] for step in of(socket, "x.step")]
    assert ids == sorted(set(ids)), "each step once, in order"
    check_order(socket)
    socket.drop()
    await watched.bench.baseline()
