"""Responses over WebSocket: continuation, what is refused, steering, and what reaches the engine."""

from __future__ import annotations

import json

import pytest
from face_bench import ALICE, BOB, FaceBench
from face_said import errors, finals, prompt_of, text
from strict_responses import check_error_frame, check_sequence

from headrace.runtime.interface import ModelCard

# -- continuation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", [True, False])
async def test_a_continuation_carries_the_conversation_but_not_the_instructions(store: bool) -> None:
    bench = FaceBench()
    socket = bench.socket()
    socket.create("first", instructions="be brief", store=store)
    await socket.until_over()
    first = finals(socket)[0]
    socket.create("second", previous_response_id=first["id"], store=store)
    await socket.until_over(2)
    second = finals(socket)[1]
    assert second["previous_response_id"] == first["id"] and second["instructions"] is None
    assert prompt_of(bench) == f"user: first\nassistant: {text(first)}\nuser: second\nassistant: "
    socket.create("third", previous_response_id=second["id"], instructions="now rhyme", store=store)
    await socket.until_over(3)
    assert prompt_of(bench) == (
        f"system: now rhyme\nuser: first\nassistant: {text(first)}\n"
        f"user: second\nassistant: {text(second)}\nuser: third\nassistant: "
    )
    assert len(bench.store) == (3 if store else 0)
    socket.drop()
    await bench.baseline()
    assert store or bench.store.bytes == 0, "what the connection remembered is gone with it"


async def test_only_the_latest_of_a_lane_continues_without_store() -> None:
    bench = FaceBench()
    socket = bench.socket()
    socket.create("first", store=False)
    socket.create("other lane", store=False, stream_id="b")
    await socket.until_over(2)
    ids = {e.get("stream_id"): e["response"]["id"] for e in socket.said if e["type"] == "response.incomplete"}
    socket.create("fork of b", store=False, stream_id="c", previous_response_id=ids["b"])
    await socket.until_over(3)
    assert not errors(socket), "another lane's latest can be forked"
    socket.create("second", store=False)
    await socket.until_over(4)
    socket.create("third", store=False, previous_response_id=ids[None])
    await socket.until_over(5)
    (error,) = errors(socket)
    assert error["status"] == 400
    assert error["error"]["code"] == "previous_response_not_found"
    assert error["error"]["param"] == "previous_response_id"
    assert error["error"]["message"] == f"Previous response with id '{ids[None]}' not found."
    socket.drop()
    await bench.baseline()
    assert bench.store.bytes == 0


async def test_an_id_that_cannot_be_ours_is_not_repeated_whole() -> None:
    socket = FaceBench().socket()
    socket.create("x", previous_response_id="r" * 256)
    await socket.until_over()
    (error,) = errors(socket)
    assert error["error"]["code"] == "previous_response_not_found"
    assert "r" * 199 in error["error"]["message"] and "r" * 201 not in error["error"]["message"]


async def test_a_failing_continuation_evicts_the_id_it_named_and_a_failing_fork_does_not() -> None:
    bench = FaceBench()
    socket = bench.socket()
    socket.create("first", store=False)
    await socket.until_over()
    parent = finals(socket)[0]["id"]
    socket.create("fork", store=False, stream_id="x", previous_response_id=parent, top_p=0.0)  # malformed
    socket.create("fork", store=False, stream_id="x", previous_response_id=parent, background=True)
    await socket.until_over(3)
    socket.create("good", store=False, stream_id="y", previous_response_id=parent)
    await socket.until_over(4)
    assert [e["error"]["code"] for e in errors(socket)] == ["invalid_value", "unsupported_parameter"]
    socket.create("bad", store=False, previous_response_id=parent, background=True)
    await socket.until_over(5)
    socket.create("again", store=False, previous_response_id=parent)
    await socket.until_over(6)
    assert errors(socket)[-1]["error"]["code"] == "previous_response_not_found"
    socket.drop()
    await bench.baseline()
    assert bench.store.bytes == 0


async def test_a_too_long_continuation_is_refused_before_it_exists_and_evicts() -> None:
    bench = FaceBench()
    socket = bench.socket()
    socket.create("first", store=False)
    await socket.until_over()
    parent = finals(socket)[0]["id"]
    socket.create("x" * 5000, store=False, previous_response_id=parent)
    await socket.until_over(2)
    (error,) = errors(socket)
    assert error["error"]["code"] == "context_length_exceeded" and error["error"]["param"] == "input"
    socket.create("again", store=False, previous_response_id=parent)
    await socket.until_over(3)
    assert errors(socket)[-1]["error"]["code"] == "previous_response_not_found"


async def test_a_stored_response_is_found_from_another_connection_of_the_same_tenant_only() -> None:
    bench = FaceBench()
    first = bench.socket()
    first.create("first")
    await first.until_over()
    parent = finals(first)[0]["id"]
    first.drop()
    second, foreign = bench.socket(ALICE), bench.socket(BOB)
    second.create("second", previous_response_id=parent)
    foreign.create("second", previous_response_id=parent)
    await second.until_over()
    await foreign.until_over()
    assert not errors(second)
    assert errors(foreign)[0]["error"]["code"] == "previous_response_not_found"


async def test_a_continuation_queued_behind_its_parent() -> None:
    """The id is looked up when the request reaches the head of its lane."""
    bench = FaceBench(gated=True)
    socket = bench.socket()
    socket.create("first", max_output_tokens=30)
    await socket.until(lambda: bool(socket.said))
    parent = socket.said[0]["response"]["id"]
    socket.create("second", previous_response_id=parent)
    await socket.until_over(2)
    assert not errors(socket)
    assert finals(socket)[1]["previous_response_id"] == parent


async def test_empty_input_needs_something_to_continue() -> None:
    bench = FaceBench()
    socket = bench.socket()
    socket.create("")
    socket.create([], instructions="only instructions")
    await socket.until_over(2)
    assert [(e["error"]["code"], e["error"]["param"]) for e in errors(socket)] == [
        ("missing_required_parameter", "input")
    ] * 2
    socket.create("hello")
    await socket.until_over(3)
    socket.create([], previous_response_id=finals(socket)[0]["id"])
    await socket.until_over(4)
    assert len(finals(socket)) == 2


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "code", "param", "malformed"),
    [
        ("", "invalid_json", None, True),
        ("[]", "invalid_json", None, True),
        ("{", "invalid_json", None, True),
        ("nul", "invalid_json", None, True),
        ("{}", "missing_required_parameter", "type", True),
        ('{"type":null}', "missing_required_parameter", "type", True),
        ('{"type":5}', "invalid_value", "type", True),
        ('{"type":{}}', "invalid_value", "type", True),
        ('{"type":"response.inject"}', "unknown_event", "type", True),
        ('{"type":"' + "x" * 5000 + '"}', "unknown_event", "type", True),
        ('{"type":"response.create"}', "missing_required_parameter", "model", False),
        ('{"type":"response.create","model":"gpt-9","input":"x"}', "model_not_found", "model", False),
        ('{"type":"response.create","model":"fake"}', "missing_required_parameter", "input", False),
        ('{"type":"response.create","model":"fake","generate":0}', "invalid_value", "generate", False),
        (
            '{"type":"response.create","model":"fake","input":"x","background":true}',
            "unsupported_parameter",
            "background",
            False,
        ),
        (
            '{"type":"response.create","model":"fake","input":"x","x_nothing":5}',
            "unknown_parameter",
            "x_nothing",
            False,
        ),
        ('{"type":"response.create","model":"fake","input":5}', "invalid_value", "input", False),
        ('{"type":"response.cancel","response_id":5}', "invalid_value", "response_id", False),
    ],
)
async def test_a_bad_message_gets_one_error_and_the_socket_lives(
    message: str, code: str, param: str | None, malformed: bool
) -> None:
    bench = FaceBench()
    socket = bench.socket()
    socket.send(message)
    bench.flush()
    (raw,) = socket.raw
    error = check_error_frame(raw)
    assert (error["error"]["code"], error["error"]["param"]) == (code, param)
    assert socket.wire.malformed_count == malformed
    assert len(bench.asks) == 0
    socket.create("still here")
    await socket.until_over(2)
    check_sequence(socket.raw[1:])
    socket.drop()
    await bench.baseline()


async def test_the_error_names_the_lane_of_the_request() -> None:
    bench = FaceBench()
    socket = bench.socket()
    socket.create("x", stream_id="a", temperature=9)
    bench.flush()
    assert errors(socket)[0]["stream_id"] == "a"


async def test_overload_is_an_error_that_says_when_to_come_back() -> None:
    bench = FaceBench(gated=True, waiting_limit=1)
    socket = bench.socket()
    socket.create("x", stream_id="a")
    socket.create("x", stream_id="b")
    bench.flush()
    (error,) = errors(socket)
    assert error["status"] == 503 and error["error"]["code"] == "server_is_overloaded"
    assert error["error"]["type"] == "server_error" and error["stream_id"] == "b"
    assert int(error["error"]["headers"]["retry-after-ms"]) > 0


async def test_unknown_fields_are_counted_or_refused() -> None:
    bench = FaceBench()
    socket = bench.socket()
    socket.create("x", zork=1, text={"format": {"type": "text"}, "zork": 2})
    await socket.until_over()
    assert bench.ignored == [("responses_ws", 2)]
    check_sequence(socket.raw)
    strict = FaceBench(settings={"strict_fields": True})
    socket = strict.socket()
    socket.create("x", zork=1)
    strict.flush()
    assert errors(socket)[0]["error"]["code"] == "unknown_parameter"
    assert errors(socket)[0]["error"]["param"] == "zork"


async def test_the_address_may_name_the_model() -> None:
    card = ModelCard("org/model", "Fake", 0, "none", 4096, 256, 0)
    bench = FaceBench(card=card)
    socket = bench.socket(model="org/model")
    assert socket.refused is None
    socket.send({"type": "response.create", "input": "x", "max_output_tokens": 2})
    socket.send({"type": "response.create", "input": "x", "model": "other"})
    await socket.until_over(2)
    assert finals(socket)[0]["model"] == "org/model"
    assert errors(socket)[0]["error"]["code"] == "model_not_found", "the request's own model wins"
    wrong = bench.socket(model="other")
    assert wrong.refused is not None and wrong.refused.status == 404
    assert json.loads(wrong.refused.body)["error"]["code"] == "model_not_found"
    socket.create("x", model="default")
    await socket.until_over(3)
    assert finals(socket)[1]["model"] == "org/model"


# -- text ----------------------------------------------------------------------------------------------------


async def test_deltas_never_split_a_character_and_stop_strings_never_leak() -> None:
    script = "Gr\u00fc\u00dfe \U0001f30d\U0001f44b \u65e5\u672c\u8a9e <END> tail".encode()
    bench = FaceBench(choose=lambda tokens, seed, width: script[(len(tokens) - 18) % len(script)])
    socket = bench.socket()
    assert len("user: x\nassistant: ") == 19
    socket.create("x", stop=["<END>"], max_output_tokens=200)
    await socket.until_over()
    events = check_sequence(socket.raw)
    final = events[-1]["response"]
    assert final["status"] == "completed"
    assert text(final) == script.decode()[1:].split("<END>")[0]
    deltas = [e["delta"] for e in events if e["type"].endswith(".delta")]
    assert "\ufffd" not in "".join(deltas) and not any("<" in d for d in deltas)
    usage = final["usage"]
    assert usage["input_tokens"] == 19
    assert usage["output_tokens"] == len(script.split(b"<END>")[0]) - 1 + len(b"<END>")


async def test_input_items_become_the_prompt() -> None:
    bench = FaceBench()
    socket = bench.socket()
    socket.create(
        [
            {"role": "developer", "content": "dev"},
            {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "sys"}]},
            {
                "role": "user",
                "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
            },
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "c", "annotations": [], "logprobs": []}],
            },
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            {"role": "system", "content": "later"},
            {"role": "user", "content": "d"},
        ],
        instructions="first",
    )
    await socket.until_over()
    assert not errors(socket) and bench.ignored == []
    assert prompt_of(bench) == (
        "system: first\n\ndev\n\nsys\nuser: ab\nassistant: c\nassistant: no\nsystem: later\nuser: d\nassistant: "
    )


async def test_sampling_fields_reach_the_engine() -> None:
    bench = FaceBench()
    socket = bench.socket()
    socket.create(
        "x",
        temperature=0.7,
        top_p=0.9,
        top_k=5,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        seed=42,
        logit_bias={"7": 1.5},
        stop_token_ids=[3],
        min_tokens=2,
    )
    await socket.until_over()
    params = bench.engine.memory.params
    (used,) = [p for p in params if p is not None]
    assert (used.temperature, used.top_p, used.top_k, used.min_p) == (0.7, 0.9, 5, 0.1)
    assert (used.repetition_penalty, used.presence_penalty, used.frequency_penalty) == (1.1, 0.5, -0.5)
    assert (used.seed, used.logit_bias, used.min_tokens) == (42, ((7, 1.5),), 2)
    assert 3 in used.stop_ids
    assert (finals(socket)[0]["temperature"], finals(socket)[0]["top_p"]) == (0.7, 0.9)
