"""Several answers to one request: one prompt for all, each in a lane of its own; prune and promote (M12)."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from face_bench import FaceBench, Socket
from face_said import by_lane, text
from fake_engine import likely, replay
from fake_prompter import letters
from strict_responses import check_sequence

from headrace.runtime.request import SamplingParams

OVER = ("response.completed", "response.incomplete", "response.failed", "error")


def of(socket: Socket, kind: str) -> list[dict[str, Any]]:
    return [event for event in socket.said if event["type"] == kind]


def created(socket: Socket, lane: str) -> dict[str, Any]:
    (event,) = [e for e in of(socket, "response.created") if e.get("stream_id") == lane]
    return dict(event["response"])


def ends(socket: Socket) -> dict[str, dict[str, Any]]:
    """The last response object of each lane."""
    return {e["stream_id"]: e["response"] for e in socket.said if e["type"] in OVER[:3]}


def told(socket: Socket, lane: str) -> str:
    deltas = of(socket, "response.output_text.delta")
    return "".join(event["delta"] for event in deltas if event.get("stream_id") == lane)


def answer(prompt: list[int], count: int, seed: int) -> bytes:
    return bytes(replay(prompt, count, SamplingParams(seed=seed), 256, letters))


def plain(socket: Socket, lane: str) -> list[str]:
    """A lane as a stock client would have been told it."""
    rows = [raw for raw in by_lane(socket, lane) if '"type":"x.' not in raw]
    ours = r'"x_resume_token":"[^"]*",|,"x_forked_from":\{[^}]*\}'
    return [re.sub(ours, "", raw) for raw in rows]


async def at_rest(bench: FaceBench, socket: Socket) -> None:
    socket.drop(1000)
    bench.clock.advance(200.0)
    await bench.baseline()


async def test_eight_answers_to_a_long_prompt_compute_it_once() -> None:
    bench = FaceBench(gated=True, page_count=1024)
    socket = bench.socket(ext="1")
    socket.create("question " * 120, stream_id="a", max_output_tokens=40, x_branches={"n": 8})
    await socket.until_over(8)
    prompt = bench.prompts[0]
    said = ends(socket)
    assert sorted(said) == [f"a#{k}" for k in range(8)]
    for k in range(8):
        assert text(said[f"a#{k}"]).encode() == answer(prompt, 40, 1 + k)
        check_sequence(plain(socket, f"a#{k}"))
        assert said[f"a#{k}"]["usage"]["input_tokens"] == len(prompt)
        if k:
            assert said[f"a#{k}"]["x_forked_from"] == {"response_id": said["a#0"]["id"], "at_token": 0}
    assert bench.scheduler.counters.prefill_tokens_computed == len(prompt), "the prompt is computed once"
    first = next(i for i, plan in enumerate(bench.engine.plans) if any(r.sample for r in plan.rows))
    assert max(len(plan.rows) for plan in bench.engine.plans[first : first + 4]) == 8, (
        "all run within 3 steps"
    )
    assert bench.running.branch_counts.stats() == {
        "branches_begun": 7, "branches_pruned": 0, "branches_promoted": 0,
    }  # fmt: skip
    await at_rest(bench, socket)


async def test_branches_part_at_a_token_of_a_running_answer() -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket()  # a stock connection: the field alone asks for these events
    socket.create("q", max_output_tokens=50, x_branches={"n": 3, "at": 20})
    await bench.until(lambda: len(told(socket, "#0")) >= 19)
    assert [e["stream_id"] for e in of(socket, "response.created")] == ["#0"]
    await socket.until_over(3)
    prompt = bench.prompts[0]
    whole = answer(prompt, 50, 1)
    for k in (1, 2):
        kept = prompt + list(whole[:20])
        assert text(ends(socket)[f"#{k}"]).encode() == whole[:20] + answer(kept, 30, 1 + k)
        assert ends(socket)[f"#{k}"]["x_forked_from"]["at_token"] == 20
    assert text(ends(socket)["#0"]).encode() == whole
    assert bench.scheduler.counters.prefill_tokens_computed == len(prompt)
    assert not [kind for kind in socket.types() if kind.startswith("x.")]
    await at_rest(bench, socket)


async def test_a_fork_may_branch() -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket(ext="1")
    socket.create("q", stream_id="a", max_output_tokens=200)
    await bench.until(lambda: len(told(socket, "a")) >= 60)
    verb = {"type": "x.fork", "response_id": created(socket, "a")["id"], "stream_id": "b", "at_token": 50}
    socket.send({**verb, "seed": 5, "max_output_tokens": 80, "x_branches": {"n": 3}})
    await socket.until_over(3)
    prompt = bench.prompts[0]
    kept = answer(prompt, 50, 1)
    for k in range(3):
        assert text(ends(socket)[f"b#{k}"]).encode() == kept + answer(prompt + list(kept), 30, 5 + k)
    assert bench.scheduler.counters.prefill_tokens_computed == len(prompt)
    await at_rest(bench, socket)


async def test_a_prune_gives_back_what_the_branch_alone_held() -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket(ext="1")
    socket.create("q" * 100, stream_id="a", max_output_tokens=300, x_branches={"n": 4})
    await bench.until(lambda: len(told(socket, "a#3")) >= 100)
    socket.send({"type": "x.prune", "branch": "a#2", "event_id": "e"})
    (pruned,) = [req for req in bench.scheduler.reqs() if req.finish is not None]
    private = [page for page in pruned.pages if bench.scheduler.pool.refs(page) == 1]
    assert private
    bench.engine.land(1)
    await bench.until(lambda: pruned.inflight == 0)
    assert not pruned.pages, "nothing is held after the step that was in flight"
    bench.flush()
    order = [e["type"] for e in socket.said if e.get("branch") == "a#2" or e.get("stream_id") == "a#2"]
    assert order[-5:] == [
        "x.pruned", "response.output_text.done", "response.content_part.done", "response.output_item.done",
        "response.incomplete",
    ]  # fmt: skip
    (said,) = of(socket, "x.pruned")
    assert said["event_id"] == "e" and said["tokens"] >= 100
    assert ends(socket)["a#2"]["status"] == "cancelled"
    assert ends(socket)["a#2"]["usage"]["output_tokens"] == said["tokens"]
    await socket.until_over(4)
    assert sorted(len(text(each)) for each in ends(socket).values())[1:] == [300] * 3, (
        "the others do not notice"
    )
    assert bench.running.branch_counts.pruned == 1
    await at_rest(bench, socket)


@pytest.mark.parametrize("ended", [False, True])
async def test_a_promoted_branch_is_what_its_lane_remembers(ended: bool) -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket(ext="1")
    count = 20 if ended else 200
    socket.create("q", stream_id="a", max_output_tokens=count, store=False, x_branches={"n": 3})
    if ended:
        await socket.until_over(3)
    else:
        await bench.until(lambda: len(told(socket, "a#2")) >= 10)
    chosen = created(socket, "a#1")["id"]
    socket.send({"type": "x.promote", "branch": "a#1", "event_id": "p"})
    bench.flush()
    (said,) = of(socket, "x.promoted")
    assert said == {"type": "x.promoted", "branch": "a#1", "response_id": chosen, "event_id": "p"}
    await socket.until_over(3)
    if not ended:
        assert {event["branch"] for event in of(socket, "x.pruned")} == {"a#0", "a#2"}
        assert len(text(ends(socket)["a#1"])) == 200
    if ended:
        other = created(socket, "a#2")["id"]
        socket.create("and?", stream_id="z", previous_response_id=other, store=False)
        await socket.until_over(4)
        assert socket.said[-1]["error"]["code"] == "previous_response_not_found"
    socket.create("and?", stream_id="a", previous_response_id=chosen, store=False)
    await socket.until_over(5 if ended else 4)
    assert text(ends(socket)["a#1"]) in bytes(bench.prompts[-1]).decode()
    await at_rest(bench, socket)


async def test_branches_that_are_not_promoted_continue_until_their_lane_goes_on() -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket(ext="1")
    socket.create("q", stream_id="a", store=False, x_branches={"n": 2})
    await socket.until_over(2)
    for lane in ("a#0", "a#1"):
        socket.create("so?", stream_id="b", previous_response_id=created(socket, lane)["id"])
    await socket.until_over(4)
    socket.create("new", stream_id="a")
    await socket.until_over(5)
    socket.create("so?", stream_id="b", previous_response_id=created(socket, "a#1")["id"])
    await socket.until_over(6)
    assert socket.said[-1]["error"]["code"] == "previous_response_not_found"
    await at_rest(bench, socket)


async def test_each_branch_has_its_own_credit() -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket(ext="1")
    socket.create("q", stream_id="a", max_output_tokens=30, x_credit=10, x_branches={"n": 2})
    await bench.until(lambda: len(of(socket, "x.paused")) == 2)
    assert len(told(socket, "a#0")) == len(told(socket, "a#1")) == 10
    socket.send({"type": "x.credit", "stream_id": "a#1", "tokens": 20})
    await socket.until_over()
    assert len(told(socket, "a#1")) == 30 and len(told(socket, "a#0")) == 10
    socket.send({"type": "response.cancel", "stream_id": "a"})
    await socket.until_over(2)
    await at_rest(bench, socket)


async def test_places_are_kept_for_branches_that_are_to_come() -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket(ext="1")
    socket.create("q", stream_id="a", max_output_tokens=30, x_branches={"n": 10, "at": 10})
    socket.create("w", stream_id="b", max_output_tokens=5, x_branches={"n": 7})
    socket.create("w", stream_id="a", max_output_tokens=5)
    for number in range(6):
        socket.create("x", stream_id=f"c{number}", max_output_tokens=60)
    bench.flush()
    assert len(bench.asks) == 1, "seven do not fit beside ten, and nobody overtakes"
    await socket.until_over(10)
    assert sorted(ends(socket)) == [f"a#{k}" for k in range(10)]
    await socket.until_over(10 + 7 + 1 + 6)
    assert sum(error["type"] == "error" for error in socket.said) == 0
    await at_rest(bench, socket)


async def test_an_answer_that_ends_before_its_branches_says_that_they_do_not_come() -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket(ext="1")
    socket.create("q", stream_id="a", max_output_tokens=10, x_branches={"n": 3, "at": 20})
    socket.create("q", stream_id="b", max_output_tokens=1, x_branches={"n": 3, "at": 1})
    socket.create("q", stream_id="c", max_output_tokens=500, x_branches={"n": 4, "at": 400})
    await bench.until(lambda: len(told(socket, "c#0")) >= 10)
    socket.send({"type": "x.prune", "branch": "c#2"})
    socket.send({"type": "response.cancel", "response_id": created(socket, "c#0")["id"]})
    await socket.until_over(1 + 3 + 1)
    bench.flush()
    said = sorted((event["branch"], event["tokens"]) for event in of(socket, "x.pruned"))
    assert said == [("a#1", 0), ("a#2", 0), ("c#1", 0), ("c#2", 0), ("c#3", 0)]
    for lane in ("a", "b", "c"):  # and its places are free again
        socket.create("next", stream_id=lane, x_branches={"n": 5})
    await socket.until_over(5 + 15)
    await at_rest(bench, socket)


async def test_branches_are_told_on_elsewhere_one_by_one() -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket(ext="1")
    socket.create("q", stream_id="a", max_output_tokens=200, x_branches={"n": 2})
    socket.create("q", stream_id="b", max_output_tokens=200, x_branches={"n": 2, "at": 150})
    await bench.until(lambda: len(told(socket, "a#1")) >= 30)
    socket.drop(1006)
    new = bench.socket(ext="1")
    for lane in ("a#0", "a#1", "b#0"):
        child = created(socket, lane)
        verb = {"type": "x.resume", "response_id": child["id"], "resume_token": child["x_resume_token"]}
        new.send({**verb, "starting_after": -1})
    new.create("x", stream_id="a", x_branches={"n": 2})
    new.send({"type": "x.prune", "branch": "a#0"})
    await new.until_over(5)
    assert text(ends(new)["b#0"]).encode() == answer(bench.prompts[0], 200, 1)
    assert not told(new, "b#1"), "what had not begun went with the connection"
    assert len(text(ends(new)["a#1"])) == 5, "the lane was taken until its branches had ended"
    await at_rest(bench, new)


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"x_branches": {"n": 0}}, "invalid_value", "x_branches.n"),
        ({"x_branches": {"n": 17}}, "invalid_value", "x_branches"),
        ({"x_branches": {"n": 2, "at": -1}}, "invalid_value", "x_branches.at"),
        ({"x_branches": {"n": 2, "at": "end"}}, "invalid_value", "x_branches.at"),
        ({"x_branches": {"n": 2, "at": {"entropy_gt": -1}}}, "invalid_value", "x_branches.at.entropy_gt"),
        ({"x_branches": {"n": 2, "k": 1}}, "unknown_parameter", "x_branches.k"),
        ({"x_branches": {}}, "missing_required_parameter", "x_branches.n"),
        ({"x_branches": 3}, "invalid_value", "x_branches"),
        ({"x_branches": {"n": 2}, "generate": False}, "invalid_value", "x_branches"),
        (
            {"x_branches": {"n": 2}, "max_output_tokens": 1 << 20},
            "context_length_exceeded",
            "max_output_tokens",
        ),
        ({"x_branches": {"n": 2}, "model": "other"}, "model_not_found", "model"),
        ({"x_branches": {"n": 2}, "stream_id": "a#1"}, "invalid_stream_id", "stream_id"),
    ],
)
async def test_a_request_for_branches_that_cannot_be_is_refused_once(
    change: dict[str, Any], code: str, param: str
) -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket(ext="1")
    socket.create("q", **{"stream_id": "a", **change})
    await socket.until_over()
    (error,) = socket.said
    assert (error["error"]["code"], error["error"]["param"]) == (code, param)
    assert error.get("stream_id") == ("a" if change.get("stream_id") is None else None)
    socket.create("q", stream_id="a", x_branches={"n": 16})
    await socket.until_over(17)
    await at_rest(bench, socket)


async def test_verbs_about_branches_that_are_not_there_disturb_nobody() -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket(ext="1")
    socket.create("q", stream_id="a", max_output_tokens=20, x_branches={"n": 2})
    socket.create("q", stream_id="b", max_output_tokens=20)
    await bench.until(lambda: len(told(socket, "a#1")) >= 5)
    for branch in ("a", "b", "b#0", "a#2", "", "#", "a#x"):
        socket.send({"type": "x.prune", "branch": branch, "event_id": branch})
        socket.send({"type": "x.promote", "branch": branch})
    socket.send({"type": "x.prune"})
    socket.send({"type": "x.promote", "branch": "a#0", "stream_id": "a"})
    bench.flush()
    codes = [(event["error"]["code"], event["error"]["param"]) for event in of(socket, "x.error")]
    assert codes[:-2] == [("response_not_found", "branch")] * 14
    assert codes[-2:] == [("missing_required_parameter", "branch"), ("unknown_parameter", "stream_id")]
    await socket.until_over(3)
    socket.send({"type": "x.prune", "branch": "a#1"})
    bench.flush()
    assert of(socket, "x.error")[-1]["error"]["param"] == "branch", "what has ended cannot be pruned"
    assert all(len(text(each)) == 20 for each in ends(socket).values())
    await at_rest(bench, socket)


async def test_a_branch_that_finds_no_room_is_refused_alone() -> None:
    bench = FaceBench(gated=True, slots=1, waiting_limit=2)
    socket = bench.socket(ext="1")
    socket.create("q", stream_id="a", max_output_tokens=30, x_branches={"n": 5})
    await socket.until_over(5)
    refused = [e for e in socket.said if e["type"] == "error"]
    assert [e["stream_id"] for e in refused] == ["a#3", "a#4"]
    assert {e["error"]["code"] for e in refused} == {"server_is_overloaded"}
    assert sorted(ends(socket)) == ["a#0", "a#1", "a#2"]
    await at_rest(bench, socket)


async def test_a_branch_can_be_steered_and_goes_on_in_its_lane() -> None:
    bench = FaceBench(gated=True, choose=lambda tokens, seed, width: b"ab. "[len(tokens) % 4])
    socket = bench.socket(ext="1")
    socket.create("q", stream_id="a", max_output_tokens=100, x_branches={"n": 2})
    await bench.until(lambda: len(told(socket, "a#1")) >= 10)
    socket.send(
        {"type": "response.steer", "previous_response_id": created(socket, "a#1")["id"], "input": "shorter"}
    )
    await socket.until_over(3)
    lanes = [e["stream_id"] for e in socket.said if e["type"] in OVER]
    assert sorted(lanes) == ["a#0", "a#1", "a#1"], "the successor has no branches of its own"
    await at_rest(bench, socket)


def doubt(prompt: list[int], answer: bytes, at: int) -> float:
    """The entropy that the fake model had before token `at`, by its twenty likeliest tokens."""
    chances = [math.exp(value) for _, value in likely([*prompt, *answer[:at]], 256)[:20]]
    chances.append(max(0.0, 1.0 - sum(chances)))
    return -sum(chance * math.log(chance) for chance in chances if chance)


@pytest.mark.parametrize("logprobs", [None, 2])
async def test_branches_part_where_the_model_was_in_doubt(logprobs: int | None) -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket(ext="1")
    fields: dict[str, Any] = {"max_output_tokens": 40}
    if logprobs is not None:
        fields |= {"include": ["message.output_text.logprobs"], "top_logprobs": logprobs}
    probe = bench.socket(ext="1")
    probe.create("q", stream_id="a", max_output_tokens=40)
    await probe.until_over()
    prompt = bench.prompts[0]
    whole = answer(prompt, 40, 1)
    doubts = [doubt(prompt, whole, at) for at in range(40)]
    bound = sorted(doubts)[-3] - 1e-3  # few are above it
    place = next(at for at, each in enumerate(doubts) if each > bound)
    socket.create("q", stream_id="a", x_branches={"n": 2, "at": {"entropy_gt": bound}}, **fields)
    await socket.until_over(2)
    assert ends(socket)["a#1"]["x_forked_from"]["at_token"] == place
    kept = whole[:place]
    assert text(ends(socket)["a#1"]).encode() == kept + answer(prompt + list(kept), 40 - place, 2)
    told = [e["logprobs"] for e in of(socket, "response.output_text.delta")]
    assert {len(each["top_logprobs"]) for row in told for each in row} == ({2} if logprobs else set())
    # A fork may look for doubt behind what it keeps, too; none is as large as this.
    verb = {"type": "x.fork", "response_id": created(socket, "a#0")["id"], "stream_id": "f", "at_token": 30}
    socket.send({**verb, "x_branches": {"n": 3, "at": {"entropy_gt": 20}}})
    await socket.until_over(3)
    assert [event["branch"] for event in of(socket, "x.pruned")] == ["f#1", "f#2"]
    probe.drop(1000)
    await at_rest(bench, socket)


def resume(socket: Socket, child: dict[str, Any], lane: str) -> None:
    socket.send(
        {
            "type": "x.resume",
            "response_id": child["id"],
            "resume_token": child["x_resume_token"],
            "starting_after": -1,
            "stream_id": lane,
        }
    )


async def test_the_lane_of_a_branch_to_come_is_not_to_be_had() -> None:
    bench = FaceBench(gated=True)
    old, socket = bench.socket(ext="1"), bench.socket(ext="1")
    old.create("x", stream_id="b", max_output_tokens=30, x_credit=1)
    socket.create("q", stream_id="a", max_output_tokens=30, x_credit=5, x_branches={"n": 3, "at": 10})
    await bench.until(lambda: len(of(old, "x.paused")) == len(of(socket, "x.paused")) == 1)
    other = created(old, "b")
    for lane in ("a", "a#0", "a#1"):
        resume(socket, other, lane)
    bench.flush()
    refused = of(socket, "x.error")
    assert [event["stream_id"] for event in refused] == ["a", "a#0", "a#1"]
    assert {(e["error"]["code"], e["error"]["param"]) for e in refused} == {("lane_busy", "stream_id")}
    socket.send({"type": "x.prune", "branch": "a#1"})
    resume(socket, other, "a#1")  # nobody waits for it any more
    socket.send({"type": "x.credit", "stream_id": "a#0", "tokens": 25})
    await bench.until(lambda: len(told(socket, "a#2")) >= 5)
    assert len(of(socket, "x.error")) == 3 and told(socket, "a#1")
    socket.send({"type": "response.cancel", "stream_id": "a"})
    await socket.until_over(3)
    await at_rest(bench, socket)


async def test_the_lanes_of_branches_are_kept_while_their_request_is_looked_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = FaceBench(gated=True)
    first, old, socket = (bench.socket(ext="1") for _ in range(3))
    first.create("x", stream_id="z")
    await first.until_over()
    old.create("x", stream_id="b", max_output_tokens=30, x_credit=1)
    await bench.until(lambda: len(of(old, "x.paused")) == 1)
    previous = created(first, "z")["id"]
    searches: list[Any] = []  # an archive that has not answered yet
    find = bench.store.find
    monkeypatch.setattr(bench.store, "find", lambda *asked: searches.append(asked))
    socket.create("q", stream_id="a", previous_response_id=previous, x_branches={"n": 2})
    for lane in ("a#0", "a#1"):
        resume(socket, created(old, "b"), lane)
    assert len(searches) == 1
    find(*searches[0])
    await socket.until_over(2)
    assert [event["error"]["code"] for event in of(socket, "x.error")] == ["lane_busy"] * 2
    assert sorted(ends(socket)) == ["a#0", "a#1"]
    for each in (first, old):
        each.drop(1000)
    await at_rest(bench, socket)


@pytest.mark.parametrize("verb", ["x.prune", "x.promote", "x.fork"])
async def test_an_end_that_no_credit_reaches_does_not_hold_the_lane(verb: str) -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket(ext="1")
    socket.create("q", stream_id="a", max_output_tokens=3, x_credit=2, x_branches={"n": 2})
    await bench.until(lambda: len(of(socket, "x.paused")) == 2)
    await bench.until(lambda: bench.runtime.stats()["requests_finished"] == 2)
    first = created(socket, "a#0")["id"]
    if verb == "x.prune":
        socket.send({"type": verb, "branch": "a#0"})
    elif verb == "x.promote":
        socket.send({"type": verb, "branch": "a#1"})
    else:
        socket.send(
            {"type": verb, "response_id": first, "at_token": 0, "stream_id": "f", "drop_parent": True}
        )
    await bench.until(lambda: "a#0" in ends(socket))
    assert [e["branch"] for e in of(socket, "x.pruned")] == ["a#0"] * (verb != "x.fork")
    assert not of(socket, "x.error") and "a#1" not in ends(socket)
    socket.send({"type": "response.cancel", "stream_id": "a"})
    await bench.until(lambda: "a#1" in ends(socket))
    await at_rest(bench, socket)
