"""`response.steer`: what is accepted, where the response stops, what follows, and what comes back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from face_bench import BOB, FaceBench, Socket
from face_said import by_lane, errors, prompt_of, text
from scripted_model import END, Script, always, call
from strict_responses import TERMINAL, check_event, check_sequence

from headrace.server.faces import steering

QUESTION = len("user: hello\nassistant: ")


def script(words: bytes) -> Any:
    """A model that says `words` again and again, whatever it is asked."""

    def choose(tokens: list[int], seed: int, width: int) -> int:
        start = bytes(tokens).rindex(b"assistant: ") + 11
        return words[(len(tokens) - start) % len(words)]

    return choose


def steer(socket: Socket, target: str, given: Any = "shorter") -> None:
    socket.send({"type": "response.steer", "previous_response_id": target, "input": given})


async def begun(socket: Socket, deltas: int = 2, **fields: Any) -> str:
    """A response that has told some text; its id."""
    fields.setdefault("max_output_tokens", 500)
    socket.create("hello", **fields)
    await socket.until(lambda: sum(kind.endswith("text.delta") for kind in socket.types()) >= deltas)
    return next(e["response"]["id"] for e in socket.said if e["type"] == "response.created")


def responses(socket: Socket) -> list[list[str]]:
    """What was said of each response, in the order of creation. Events that name none follow the one before."""
    runs: list[list[str]] = []
    for raw in socket.raw:
        event = json.loads(raw)
        if event["type"] == "error" or (".steer." in event["type"] and not event["sequence_number"]):
            continue
        if event["type"] == "response.created":
            runs.append([])
        runs[-1].append(raw)
    return runs


def steers(socket: Socket, kind: str) -> list[dict[str, Any]]:
    return [check_event(raw) for raw in socket.raw if f'"response.steer.{kind}"' in raw]


@pytest.mark.parametrize("store", [True, False])
async def test_a_steered_response_ends_with_its_sentence_and_the_successor_knows_it(store: bool) -> None:
    bench = FaceBench(gated=True, choose=script(b"One two. "))
    socket = bench.socket()
    target = await begun(
        socket, stream_id="a", store=store, instructions="be kind", metadata={"k": "v"}, temperature=0.5
    )
    steer(socket, target)
    await socket.until_over(2)
    first, second = (check_sequence(raws) for raws in responses(socket))
    (accepted,) = steers(socket, "accepted")
    assert accepted["steer"]["previous_response_id"] == target and accepted["stream_id"] == "a"
    assert accepted in first, "it has the next number of its target"
    cut = first[-1]["response"]
    assert (cut["status"], cut["incomplete_details"]) == ("incomplete", {"reason": "steered"})
    assert text(cut).endswith("two.") and len(text(cut)) <= 3 * len("One two. ")
    assert cut["output"][0]["status"] == "completed", "the item was finished"
    after = second[-1]["response"]
    assert after["previous_response_id"] == target and second[0]["stream_id"] == "a"
    for setting in ("instructions", "metadata", "temperature", "max_output_tokens", "store"):
        assert after[setting] == cut[setting], "the successor inherits the settings"
    assert prompt_of(bench) == (
        f"system: be kind\nuser: hello\nassistant: {text(cut)}\nuser: shorter\nassistant: "
    )
    order = [event["type"] for event in socket.said]
    assert order.index("response.incomplete") + 1 == order.index("response.created", 1)
    socket.create("and", stream_id="a", previous_response_id=after["id"], store=store)
    await socket.until_over(3)
    assert not errors(socket)
    socket.drop()
    await bench.baseline()


async def test_without_an_end_of_a_sentence_it_stops_soon_and_the_item_says_so() -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket()
    target = await begun(socket)
    told = len("".join(e["delta"] for e in socket.said if e["type"].endswith("text.delta")))
    steer(socket, target)
    await socket.until_over(2)
    cut = check_sequence(responses(socket)[0])[-1]["response"]
    assert cut["output"][0]["status"] == "incomplete"
    assert len(text(cut)) - told <= steering.PATIENCE + 2
    assert cut["usage"]["output_tokens"] <= len(text(cut)) + 1, "it stopped within a step"


async def test_a_steer_before_the_first_word_stops_at_once() -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket()
    socket.create("hello", max_output_tokens=500)
    await socket.until(lambda: "response.in_progress" in socket.types())
    steer(socket, socket.said[0]["response"]["id"])
    await socket.until_over(2)
    first, second = (check_sequence(raws) for raws in responses(socket))
    assert first[-1]["response"]["output"] == [] and second[-1]["response"]["output"]
    assert prompt_of(bench) == "user: hello\nassistant: \nuser: shorter\nassistant: "


async def test_several_steers_join_one_successor_in_their_order() -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket()
    target = await begun(socket)
    part = {"type": "input_text", "text": "and "}
    steer(socket, target, "first")
    steer(socket, target, [{"role": "user", "content": [part, {"type": "input_text", "text": "second"}]}])
    steer(socket, target, [{"type": "message", "role": "user", "content": "third"}])
    await socket.until_over(2)
    assert len(responses(socket)) == 2 and len(steers(socket, "accepted")) == 3
    assert len({event["steer"]["id"] for event in steers(socket, "accepted")}) == 3
    check_sequence(responses(socket)[0])
    assert prompt_of(bench).endswith("\nuser: first\nuser: and second\nuser: third\nassistant: ")
    stored = responses(socket)[1][0]
    items = bench.fetch(f"/v1/responses/{json.loads(stored)['response']['id']}/input_items").json
    assert [item["content"][-1]["text"] for item in items["data"]] == ["third", "second", "first"]


async def test_a_response_that_completes_by_itself_is_followed_too() -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket()
    target = await begun(socket, max_output_tokens=4)
    steer(socket, target)
    await socket.until_over(2)
    first, second = (check_sequence(raws) for raws in responses(socket))
    assert first[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert second[0]["response"]["previous_response_id"] == target


async def test_the_successor_comes_before_what_waits_in_the_lane() -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket()
    target = await begun(socket, stream_id="a")
    socket.create("waits", stream_id="a", metadata={"who": "waited"})
    steer(socket, target)
    await socket.until_over(3)
    for raws in responses(socket):
        check_sequence(raws)
    who = [json.loads(raws[0])["response"]["metadata"].get("who") for raws in responses(socket)]
    assert who == [None, None, "waited"]
    assert by_lane(socket, "a") == socket.raw


async def test_a_successor_can_be_steered_in_its_turn() -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket()
    steer(socket, await begun(socket), "one")
    await socket.until(lambda: socket.types().count("response.created") == 2)
    second = [e["response"]["id"] for e in socket.said if e["type"] == "response.created"][1]
    steer(socket, second, "two")
    await socket.until_over(3)
    assert [check_sequence(raws)[-1]["response"]["status"] for raws in responses(socket)] == [
        "incomplete"
    ] * 3
    assert prompt_of(bench).count("user: one") == 1 and prompt_of(bench).endswith("user: two\nassistant: ")


@pytest.mark.parametrize(
    "event",
    [
        {"input": "x"},
        {"previous_response_id": "RUNNING"},
        {"previous_response_id": "RUNNING", "input": []},
        {"previous_response_id": "RUNNING", "input": ""},
        {"previous_response_id": "RUNNING", "input": [{"role": "system", "content": "x"}]},
        {"previous_response_id": "RUNNING", "input": [{"role": "user", "content": "x", "zork": 1}]},
        {"previous_response_id": "RUNNING", "input": [{"role": "user", "content": []}]},
        {"previous_response_id": "RUNNING", "input": [{"type": "function_call_output", "output": "x"}]},
        {"previous_response_id": "RUNNING", "input": "x", "stream_id": "a"},
        {"previous_response_id": "RUNNING", "input": "x", "metadata": {}},
    ],
)
async def test_invalid_input_comes_back_and_the_response_goes_on(event: dict[str, Any]) -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket()
    target = await begun(socket, max_output_tokens=10)
    event = {k: target if v == "RUNNING" else v for k, v in event.items()}
    socket.send({"type": "response.steer", **event})
    await socket.until_over()
    (failed,) = (json.loads(raw) for raw in socket.raw if ".steer." in raw)
    assert failed["type"] == "response.steer.failed" and failed["error"]["code"] == "invalid_input"
    assert failed["steer"]["input"] == event.get("input") and "id" not in failed["steer"]
    numbers = [e["sequence_number"] for e in socket.said if e is not failed and e["type"] != failed["type"]]
    mine = failed["sequence_number"] if "previous_response_id" in event else None
    assert sorted([*numbers, *([] if mine is None else [mine])]) == list(
        range(len(numbers) + (mine is not None))
    )
    assert socket.said[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


async def test_who_cannot_be_steered() -> None:
    bench = FaceBench(gated=True)
    socket, other = bench.socket(), bench.socket()
    steer(socket, "resp_unknown")
    elsewhere = await begun(other)
    steer(socket, elsewhere)
    done = await begun(socket, max_output_tokens=3)
    await socket.until_over()
    steer(socket, done)
    socket.create("x" * 400, generate=False)
    await socket.until(lambda: socket.types().count("response.created") == 2)
    warm = [e["response"]["id"] for e in socket.said if e["type"] == "response.created"][1]
    steer(socket, warm)
    await socket.until_over(2)
    codes = [(e["error"]["code"], e["sequence_number"]) for e in steers(socket, "failed")]
    assert codes == [
        ("response_not_found", 0),
        ("response_not_active", 0),
        ("response_already_completed", 0),
        ("steering_not_supported", 2),
    ]
    foreign = bench.socket(BOB)
    steer(foreign, elsewhere)
    await foreign.until(lambda: bool(foreign.said))
    assert steers(foreign, "failed")[0]["error"]["code"] == "response_not_found", "nothing is said of others"


async def test_too_many_steers() -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket()
    target = await begun(socket)
    for number in range(steering.STEERS_PENDING + 1):
        steer(socket, target, str(number))
    await socket.until_over(2)
    assert len(steers(socket, "accepted")) == steering.STEERS_PENDING
    (failed,) = steers(socket, "failed")
    assert failed["error"]["code"] == "too_many_pending_steers"
    assert failed["steer"]["input"] == str(steering.STEERS_PENDING)
    check_sequence(responses(socket)[0])


async def test_a_cancelled_response_gives_its_steers_back() -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket()
    target = await begun(socket, stream_id="a")
    steer(socket, target, "first")
    socket.send({"type": "response.cancel", "response_id": target})
    steer(socket, target, "too late")
    await socket.until_over()
    bench.flush()
    late, failed = steers(socket, "failed")
    (accepted,) = steers(socket, "accepted")
    assert late["error"]["code"] == failed["error"]["code"] == "response_not_active"
    assert late["steer"]["input"] == "too late" and "id" not in late["steer"]
    assert failed["steer"] == {
        "id": accepted["steer"]["id"],
        "previous_response_id": target,
        "input": "first",
    }
    assert failed["stream_id"] == "a"
    assert check_sequence(responses(socket)[0])[-1]["response"]["status"] == "cancelled"
    assert [e["type"] for e in socket.said if e["type"] in TERMINAL] == ["response.incomplete"]
    socket.drop()
    await bench.baseline()


@pytest.mark.parametrize("how", ["too long", "overloaded", "draining"])
async def test_a_successor_that_cannot_be_gives_its_steers_back(how: str) -> None:
    bench = FaceBench(gated=True, waiting_limit=2)
    socket = bench.socket()
    target = await begun(socket)
    given = "x" * 5000 if how == "too long" else "shorter"
    steer(socket, target, given)
    if how == "draining":
        socket.session.drain()
    elif how == "overloaded":
        bench.runtime.ready = False
    await socket.until(lambda: bool(steers(socket, "failed")))
    (failed,) = steers(socket, "failed")
    assert failed["error"]["code"] == "successor_creation_failed"
    assert failed["steer"]["id"] == steers(socket, "accepted")[0]["steer"]["id"]
    assert failed["steer"]["input"] == given and not errors(socket)
    assert len(responses(socket)) == 1
    bench.runtime.ready = True
    if how == "draining":
        await socket.until(lambda: socket.wire.close_code == 1012)
    else:
        socket.create("goes on")
        await socket.until_over(2)
        check_sequence(responses(socket)[1])
    if not socket.gone:
        socket.drop()
    await bench.baseline()


async def test_a_connection_that_goes_takes_its_steers_along() -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket()
    steer(socket, await begun(socket))
    socket.drop()
    await bench.baseline()
    assert bench.store.bytes == 0


# -- with tools ------------------------------------------------------------------------------------------------

WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}
PATCH = {"type": "custom", "name": "patch", "description": "changes a file"}
CALLS = "Let me look" + call("weather", '{"at": "Rome"}') + call("patch", '{"input": "a"}')


def tool_bench() -> FaceBench:
    """A model that calls both tools, and says something once it has been given an output."""
    script = Script(lambda prompt: "It is sunny. So it is." if "21 degrees" in prompt else CALLS)
    return FaceBench(gated=True, choose=script, eos=frozenset({END}), form={"tools": "hermes"})


async def waiting_for_outputs(bench: FaceBench, socket: Socket, *given: str) -> dict[str, Any]:
    """A response that was steered while it spoke, went on to its calls, and ended with them."""
    socket.create("hello", tools=[WEATHER, PATCH], max_output_tokens=500, stream_id="a")
    await socket.until(lambda: any(kind.endswith("text.delta") for kind in socket.types()))
    target = socket.said[0]["response"]["id"]
    for text_ in given:
        steer(socket, target, text_)
    await socket.until(lambda: len(steers(socket, "pending")) == len(given))
    return socket.said[0]["response"]


async def test_steers_wait_for_tool_outputs_and_join_the_request_that_brings_them() -> None:
    bench = tool_bench()
    socket = bench.socket()
    target = (await waiting_for_outputs(bench, socket, "in Celsius", "please"))["id"]
    (first,) = responses(socket)
    completed = check_sequence(first)[-1]["response"]
    calls = [item for item in completed["output"] if "call_id" in item]
    assert completed["status"] == "completed" and len(calls) == 2
    pending = steers(socket, "pending")
    assert [event["type"] for event in socket.said[-3:]] == [
        "response.completed",
        "response.steer.pending",
        "response.steer.pending",
    ]
    for event, accepted in zip(pending, steers(socket, "accepted"), strict=True):
        assert event["steer"] == accepted["steer"] and event["stream_id"] == "a"
        assert event["reason"] == "waiting_for_required_input" and event["sequence_number"] == 0
        assert event["required_input"] == [
            {"type": "function_call_output", "call_id": calls[0]["call_id"], "name": "weather"},
            {"type": "custom_tool_call_output", "call_id": calls[1]["call_id"]},
        ]
    outputs = [{**stub, "output": "21 degrees"} for stub in pending[0]["required_input"]]
    outputs.append({"role": "user", "content": "and be brief"})
    socket.create(
        outputs, stream_id="a", previous_response_id=target, instructions="own", max_output_tokens=90
    )
    await socket.until_over(2)
    final = check_sequence(responses(socket)[1])[-1]["response"]
    assert final["status"] == "completed" and final["instructions"] == "own", "the request keeps its settings"
    prompt = prompt_of(bench)
    order = [prompt.index(text_) for text_ in ("21 degrees", "in Celsius", "please", "and be brief")]
    assert order == sorted(order) and not steers(socket, "failed") and not errors(socket)
    socket.drop()
    await bench.baseline()


async def test_steers_that_wait_come_back_when_the_conversation_goes_elsewhere() -> None:
    bench = tool_bench()
    socket = bench.socket()
    await waiting_for_outputs(bench, socket, "in Celsius")
    socket.create("something else", stream_id="a")
    await socket.until_over(2)
    await socket.until(lambda: bool(steers(socket, "failed")))
    (failed,) = steers(socket, "failed")
    assert failed["error"]["code"] == "response_not_active" and failed["steer"]["input"] == "in Celsius"
    assert failed["steer"]["id"] == steers(socket, "accepted")[0]["steer"]["id"]
    socket.drop()
    await bench.baseline()


async def test_steers_that_wait_come_back_when_their_request_is_refused() -> None:
    bench = tool_bench()
    socket = bench.socket()
    target = (await waiting_for_outputs(bench, socket, "in Celsius"))["id"]
    socket.create("x", stream_id="a", previous_response_id=target, model="gpt-9")
    await socket.until(lambda: bool(steers(socket, "failed")))
    assert steers(socket, "failed")[0]["error"]["code"] == "successor_creation_failed"
    assert errors(socket)[0]["error"]["code"] == "model_not_found"


async def test_a_call_is_never_cut_by_a_steer() -> None:
    bench = tool_bench()
    socket = bench.socket()
    socket.create("hello", tools=[WEATHER, PATCH], max_output_tokens=500)
    await socket.until(lambda: any("arguments.delta" in kind for kind in socket.types()))
    steer(socket, socket.said[0]["response"]["id"])
    await socket.until(lambda: bool(steers(socket, "pending")))
    final = check_sequence(responses(socket)[0])[-1]["response"]
    assert {item["status"] for item in final["output"]} == {"completed"} and final["status"] == "completed"


async def test_a_steer_ends_a_thought_at_its_sentence() -> None:
    said = "<think>\nHm. That is hard. It is. " + "x" * 90 + "</think>\n\nYes."
    bench = FaceBench(
        gated=True, choose=always(said), eos=frozenset({END}), form={"tools": "hermes", "reasoning": "think"}
    )
    socket = bench.socket()
    socket.create("hello", max_output_tokens=500)
    await socket.until(lambda: any("reasoning_text.delta" in kind for kind in socket.types()))
    steer(socket, socket.said[0]["response"]["id"])
    await socket.until_over(2)
    cut = check_sequence(responses(socket)[0])[-1]["response"]
    assert cut["incomplete_details"] == {"reason": "steered"}
    assert [item["type"] for item in cut["output"]] == ["reasoning"] and cut["output"][0][
        "status"
    ] == "completed"
