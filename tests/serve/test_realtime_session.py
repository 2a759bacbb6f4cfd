"""Realtime: what the session is set to, what happens to items, what responses do to each other."""

from __future__ import annotations

import json
from typing import Any

import pytest
from face_bench import ALICE, BOB, FaceBench, FakeWire
from face_said import prompt_of
from realtime_bench import Talk, code_of, over

from headrace.server.exchange import HttpRequest

# -- the session ---------------------------------------------------------------------------------------------------


async def test_an_update_changes_what_it_names_and_nothing_else() -> None:
    bench = FaceBench()
    talk = Talk(bench)
    (created,) = talk.said_now()
    session = created["session"]
    steps: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"instructions": "Be brief."}, {"instructions": "Be brief."}),
        ({"max_output_tokens": 7}, {"max_output_tokens": 7}),
        ({"temperature": 0.5, "seed": 3}, {"temperature": 0.5, "seed": 3}),
        ({"truncation": "disabled"}, {"truncation": "disabled"}),
        (
            {"truncation": {"type": "retention_ratio", "retention_ratio": 0.5}},
            {"truncation": {"type": "retention_ratio", "retention_ratio": 0.5, "token_limits": None}},
        ),
        (
            {"audio": {"input": {"turn_detection": None}, "output": {"voice": "ash"}}},
            {"audio": {"input": {"turn_detection": None}, "output": {"voice": "ash"}}},
        ),
        ({"reasoning": {"effort": "low"}}, {"reasoning": {"effort": "low"}}),
        ({"parallel_tool_calls": False}, {"parallel_tool_calls": False}),
        ({"output_modalities": ["text"], "tools": [], "tool_choice": "none"}, {"tool_choice": "none"}),
        ({"tool_choice": "required"}, {"tool_choice": "required"}),
        ({"instructions": None, "max_output_tokens": None, "truncation": None}, {}),
        ({"instructions": ""}, {"instructions": ""}),
        ({"max_output_tokens": "inf"}, {"max_output_tokens": "inf"}),
        ({"tracing": "auto", "include": [], "prompt": None}, {}),
        ({"model": "another"}, {}),
        ({"future_field": {"a": 1}}, {}),
    ]
    for given, changed in steps:
        talk.update(**given)
        (event,) = talk.said_now()
        session = {**session, **changed}
        assert event["type"] == "session.updated"
        told = event["session"]
        if "truncation" in told and isinstance(told["truncation"], dict):
            told["truncation"].setdefault("token_limits", None)
        assert told == session, given
    assert bench.ignored == [("realtime", 1)]
    talk.send({"type": "session.update", "session": {"instructions": "No type."}})
    assert talk.said_now()[0]["session"]["instructions"] == "No type."
    await over(bench, talk)


@pytest.mark.parametrize(
    ("given", "code", "param"),
    [
        ({"output_modalities": ["audio"]}, "not_supported", "session.output_modalities"),
        ({"output_modalities": ["text", "audio"]}, "not_supported", "session.output_modalities"),
        ({"type": "transcription"}, "not_supported", "session.type"),
        ({"prompt": {"id": "pmpt_1"}}, "unsupported_parameter", "session.prompt"),
        ({"temperature": 3}, "invalid_value", "session.temperature"),
        ({"max_output_tokens": 0}, "invalid_value", "session.max_output_tokens"),
        ({"max_output_tokens": "infinite"}, "invalid_value", "session.max_output_tokens"),
        ({"truncation": "never"}, "invalid_value", "session.truncation"),
        ({"truncation": {"type": "retention_ratio"}}, "missing_required_parameter", None),
        ({"audio": [1]}, "invalid_value", "session.audio"),
        ({"audio": json.loads("[" * 40 + "]" * 40)}, "invalid_value", "session.audio"),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, "unsupported_parameter", "session.tools[0].type"),
        ({"tools": [{"type": "function"}]}, "missing_required_parameter", "session.tools[0].name"),
        ({"tools": [{"name": "a b"}]}, "invalid_value", "session.tools[0].name"),
        ({"tools": [{"name": "a"}, {"name": "a"}]}, "invalid_value", "session.tools[1].name"),
        ({"tools": [{"name": "a", "description": "x" * (257 << 10)}]}, "invalid_value", "session.tools"),
        ({"tools": [{"name": "a", "parameters": 5}]}, "invalid_value", "session.tools[0].parameters"),
        ({"tool_choice": "sometimes"}, "invalid_value", "session.tool_choice"),
        ({"tool_choice": {"type": "mcp", "server_label": "x"}}, "invalid_value", "session.tool_choice"),
        ({"x_feature": 1}, "unknown_parameter", "session.x_feature"),
        ({"instructions": "x" * (800 << 10)}, "invalid_value", "session"),
    ],
)
async def test_a_refused_update_leaves_the_session_as_it_was(
    given: dict[str, Any], code: str, param: str | None
) -> None:
    bench = FaceBench()
    talk = Talk(bench)
    talk.update(instructions="Before.", seed=4)
    before = talk.said_now()[-1]["session"]
    talk.send({"type": "session.update", "event_id": "mine", "session": {"instructions": "After.", **given}})
    (event,) = talk.said_now()
    assert event["error"]["event_id"] == "mine"
    assert event["error"]["code"] == code
    if param is not None:
        assert event["error"]["param"] == param
    talk.update()
    assert talk.said_now()[0]["session"] == before
    await over(bench, talk)


async def test_answers_are_made_with_the_session_and_their_own_settings_over_it() -> None:
    bench = FaceBench()
    talk = Talk(bench)
    talk.update(instructions="Of the session.", temperature=0.25, max_output_tokens=3, stop=["zzz"], top_k=9)
    talk.user("hello")
    talk.send({"type": "response.create"})
    await talk.until_done()
    ask = bench.asks[-1]
    assert (ask.temperature, ask.max_tokens, ask.stop, ask.top_k) == (0.25, 3, ("zzz",), 9)
    assert prompt_of(bench).startswith("system: Of the session.\nuser: hello\n")
    talk.ask(instructions="Of this one.", max_output_tokens=4, temperature=0.75, reasoning={"effort": "none"})
    await talk.until_done(2)
    ask = bench.asks[-1]
    assert (ask.temperature, ask.max_tokens, ask.stop, ask.top_k) == (0.75, 4, ("zzz",), 9)
    assert ask.template_options == {"enable_thinking": False}
    assert prompt_of(bench).startswith("system: Of this one.\nuser: hello\n")
    talk.send({"type": "response.create", "response": {"max_output_tokens": "inf", "stop": "a"}})
    talk.send({"type": "response.cancel"})
    await talk.until_done(3)
    assert bench.asks[-1].max_tokens is None and bench.asks[-1].stop == ("a",)
    assert bench.asks[-1].temperature == 0.25, "one response's own settings are its own"
    assert talk.reader.finals[-1]["max_output_tokens"] == "inf"
    await over(bench, talk)


# -- items ---------------------------------------------------------------------------------------------------------


async def test_items_go_where_they_are_put() -> None:
    bench = FaceBench()
    talk = Talk(bench)
    talk.said_now()
    talk.user("b", id="b")
    talk.user("d", id="d", previous_item_id="b")
    talk.user("c", id="c", previous_item_id="b")
    talk.user("a", id="a", previous_item_id="root")
    talk.user("e", id="e", previous_item_id=None)
    events = talk.said_now()
    assert [e["type"] for e in events] == ["conversation.item.added", "conversation.item.done"] * 5
    assert [e["previous_item_id"] for e in events[::2]] == [None, "b", "b", None, "d"]
    assert talk.items() == ["a", "b", "c", "d", "e"]
    talk.user("x", previous_item_id="nobody")
    assert code_of(talk) == ("invalid_value", "previous_item_id")
    talk.send({"type": "conversation.item.retrieve", "item_id": "c"})
    (event,) = talk.said_now()
    assert event["type"] == "conversation.item.retrieved" and event["item"]["content"][0]["text"] == "c"
    talk.send({"type": "conversation.item.delete", "item_id": "c"})
    (event,) = talk.said_now()
    assert event == {**event, "type": "conversation.item.deleted", "item_id": "c"}
    for verb in ("delete", "retrieve"):
        talk.send({"type": f"conversation.item.{verb}", "item_id": "c"})
        assert code_of(talk) == ("item_retrieve_invalid_item_id", "item_id")
    assert talk.items() == ["a", "b", "d", "e"]
    talk.ask()
    await talk.until_done()
    assert prompt_of(bench).startswith("user: a\nuser: b\nuser: d\nuser: e\nassistant: ")
    await over(bench, talk)


async def test_all_kinds_of_messages_reach_the_prompt() -> None:
    bench = FaceBench()
    talk = Talk(bench)
    for role, parts in (
        ("system", [{"type": "input_text", "text": "Rules."}]),
        ("user", [{"type": "input_text", "text": "one"}, {"type": "input_text", "text": " and two"}]),
        ("assistant", [{"type": "output_text", "text": "three"}]),
        ("user", [{"type": "text", "text": "four"}]),
    ):
        talk.send(
            {
                "type": "conversation.item.create",
                "item": {"type": "message", "role": role, "content": parts, "object": "realtime.item"},
            }
        )
    talk.update(instructions="First.")
    talk.ask()
    await talk.until_done()
    assert prompt_of(bench).startswith(
        "system: First.\n\nRules.\nuser: one and two\nassistant: three\nuser: four\nassistant: "
    )
    kinds = [[part["type"] for part in item["content"]] for item in talk.reader.items]
    assert kinds == [["input_text"], ["input_text"] * 2, ["output_text"], ["input_text"], ["output_text"]]
    await over(bench, talk)


@pytest.mark.parametrize(
    ("item", "code", "param"),
    [
        ({"type": "message", "role": "user"}, "missing_required_parameter", "item.content"),
        ({"type": "message", "content": []}, "missing_required_parameter", "item.role"),
        ({"type": "message", "role": "user", "content": []}, "invalid_value", "item.content"),
        ({"role": "user", "content": []}, "missing_required_parameter", "item.type"),
        ({"type": "message", "role": "tool", "content": []}, "invalid_value", "item.role"),
        (
            {"type": "message", "role": "user", "content": [{"type": "input_text"}]},
            "missing_required_parameter",
            "item.content[0].text",
        ),
        (
            {"type": "message", "role": "user", "content": [{"type": "output_text", "text": "x"}]},
            "invalid_value",
            "item.content[0].type",
        ),
        (
            {"type": "message", "role": "assistant", "content": [{"type": "input_text", "text": "x"}]},
            "invalid_value",
            "item.content[0].type",
        ),
        (
            {"type": "message", "role": "user", "content": [{"type": "input_audio", "audio": "AAAA"}]},
            "not_supported",
            "item.content[0]",
        ),
        (
            {
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": "x" * (800 << 10)}],
            },
            "invalid_value",
            "item",
        ),
        ({"type": "mcp_call", "id": "x"}, "unsupported_parameter", "item.type"),
        ({"type": "item_reference", "id": "x"}, "unsupported_parameter", "item.type"),
        ({"type": "function_call", "name": "f"}, "missing_required_parameter", "item.arguments"),
        ({"type": "function_call_output", "call_id": "c"}, "missing_required_parameter", "item.output"),
        (
            {
                "type": "message",
                "role": "user",
                "id": "taken",
                "content": [{"type": "input_text", "text": "x"}],
            },
            "invalid_value",
            "item.id",
        ),
        (
            {"type": "message", "role": "user", "id": "root", "content": [{"type": "text", "text": "x"}]},
            "invalid_value",
            "item.id",
        ),
        ({"type": "message", "id": "a b", "role": "user", "content": []}, "invalid_value", "item.id"),
    ],
)
async def test_an_item_that_is_none_is_refused_by_name(item: dict[str, Any], code: str, param: str) -> None:
    bench = FaceBench()
    talk = Talk(bench)
    talk.user("x", id="taken")
    talk.said_now()
    talk.send({"type": "conversation.item.create", "item": item})
    assert code_of(talk) == (code, param)
    assert talk.items() == ["taken"]
    await over(bench, talk)


async def test_the_answer_may_be_deleted_while_it_is_written() -> None:
    bench = FaceBench(gated=True)
    talk = Talk(bench)
    talk.user("hello", id="u")
    talk.ask(max_output_tokens=8)
    await talk.until(lambda: "response.output_text.delta" in talk.reader.types)
    (answer,) = (item["id"] for item in talk.reader.items if item["id"] != "u")
    talk.send({"type": "conversation.item.delete", "item_id": answer})
    (final,) = await talk.until_done()
    assert final["output"][0]["id"] == answer and len(final["output"][0]["content"][0]["text"]) == 8
    assert talk.items() == ["u"]
    talk.ask()
    await talk.until_done(2)
    assert prompt_of(bench) == "user: hello\nassistant: ", "what was deleted is not shown to the model"
    await over(bench, talk)


async def test_sessions_know_nothing_of_each_other() -> None:
    bench = FaceBench()
    alice, bob = Talk(bench, ALICE), Talk(bench, BOB)
    alice.user("secret", id="a")
    alice.ask()
    await alice.until_done()
    bob.said_now()
    for event in (
        {"type": "conversation.item.retrieve", "item_id": "a"},
        {"type": "conversation.item.delete", "item_id": "a"},
        {"type": "response.cancel", "response_id": alice.reader.finals[0]["id"]},
    ):
        bob.send(event)
        (said,) = bob.said_now()
        assert said["type"] == "error"
    bob.user("mine", id="a")
    bob.ask()
    await bob.until_done()
    assert prompt_of(bench) == "user: mine\nassistant: "
    assert {ask.tenant.id for ask in bench.asks} == {"alice", "bob"}
    await over(bench, alice, bob)


# -- audio ---------------------------------------------------------------------------------------------------------


async def test_audio_is_answered_and_the_session_goes_on() -> None:
    bench = FaceBench()
    talk = Talk(bench)
    talk.said_now()
    for event, code in (
        ({"type": "input_audio_buffer.append", "audio": "AAAA"}, "not_supported"),
        ({"type": "input_audio_buffer.commit"}, "input_audio_buffer_commit_empty"),
        ({"type": "output_audio_buffer.clear"}, "not_supported"),
        (
            {
                "type": "conversation.item.truncate",
                "item_id": "x",
                "content_index": 0,
                "audio_end_ms": 5,
            },
            "not_supported",
        ),
    ):
        talk.send({**event, "event_id": "e"})
        (said,) = talk.said_now()
        assert (said["error"]["code"], said["error"]["event_id"]) == (code, "e")
    talk.send({"type": "input_audio_buffer.clear"})
    (said,) = talk.said_now()
    assert set(said) == {"type", "event_id"} and said["type"] == "input_audio_buffer.cleared"
    assert talk.wire.malformed_count == 0
    await over(bench, talk)


# -- the end -------------------------------------------------------------------------------------------------------


async def test_an_idle_session_closes_at_its_age_limit() -> None:
    bench = FaceBench()
    talk = Talk(bench)
    talk.said_now()
    bench.clock.advance(3599)
    assert talk.wire.close_code is None
    bench.clock.advance(1)
    bench.flush()
    assert talk.wire.close_code == 1001 and talk.said_now() == []
    await bench.baseline()


async def test_a_busy_session_finishes_what_runs() -> None:
    bench = FaceBench(gated=True)
    talk = Talk(bench)
    talk.user("hello")
    talk.ask(max_output_tokens=6)
    await talk.until(lambda: "response.output_text.delta" in talk.reader.types)
    bench.clock.advance(3600)
    talk.ask(event_id="late", conversation="none")
    await talk.until(lambda: talk.gone)
    (error,) = talk.reader.errors
    assert (error["code"], error["event_id"]) == ("session_expired", "late")
    assert [final["status"] for final in talk.reader.finals] == ["incomplete"]
    assert talk.wire.close_code == 1001
    await bench.baseline()


async def test_drain_finishes_what_runs_and_closes_with_1012() -> None:
    bench = FaceBench(gated=True)
    talk, idle = Talk(bench), Talk(bench)
    talk.user("hello")
    talk.ask(max_output_tokens=6)
    await talk.until(lambda: "response.output_text.delta" in talk.reader.types)
    talk.session.drain()
    idle.session.drain()
    talk.ask(conversation="none")
    await talk.until(lambda: talk.gone and idle.gone)
    assert [error["code"] for error in talk.reader.errors] == ["server_is_overloaded"]
    assert [final["status"] for final in talk.reader.finals] == ["incomplete"]
    assert talk.wire.close_code == idle.wire.close_code == 1012
    await bench.baseline()


async def test_what_the_server_itself_cancels_did_not_come_from_the_client() -> None:
    bench = FaceBench(gated=True)
    talk = Talk(bench)
    talk.user("hello")
    talk.ask(max_output_tokens=100)
    await talk.until(lambda: "response.output_text.delta" in talk.reader.types)
    bench.runtime.cancel_all()
    (final,) = await talk.until_done()
    assert final["status"] == "failed"
    assert final["status_details"]["error"]["code"] == "server_is_overloaded"
    await over(bench, talk)


async def test_a_connection_that_goes_takes_its_answers_along() -> None:
    bench = FaceBench(gated=True)
    talk = Talk(bench)
    talk.user("hello")
    talk.ask(max_output_tokens=1000)
    talk.ask(conversation="none", max_output_tokens=1000)
    await talk.until(lambda: talk.reader.types.count("response.output_text.delta") >= 4)
    await over(bench, talk)
    assert bench.runtime.ends[next(f for f in bench.runtime.ends if f.name == "CANCELLED")] == 2


@pytest.mark.parametrize(
    ("query", "status", "code", "param"),
    [
        ({}, 400, "missing_required_parameter", "model"),
        ({"model": "gpt-realtime"}, 404, "model_not_found", "model"),
        ({"model": "fake", "intent": "transcription"}, 400, "not_supported", "intent"),
        ({"call_id": "rtc_1"}, 400, "not_supported", "call_id"),
    ],
)
async def test_the_address_is_refused_before_the_upgrade(
    query: dict[str, str], status: int, code: str, param: str
) -> None:
    route = FaceBench().routes.sockets["/v1/realtime"]
    reply = route.refuse(HttpRequest("GET", "/v1/realtime", query, {}, b"", ALICE, "r"))
    assert reply is not None and reply.status == status
    error = json.loads(reply.body)["error"]
    assert (error["code"], error["param"]) == (code, param)
    for good in ({"model": "fake"}, {"model": "default", "intent": "conversation"}):
        assert route.refuse(HttpRequest("GET", "/v1/realtime", good, {}, b"", ALICE, "r")) is None


async def test_a_client_that_asks_and_never_reads_is_closed() -> None:
    for text, most in (("x", 2000), ("x" * (600 << 10), 80)):
        bench = FaceBench()
        talk = Talk(bench)
        talk.said_now()
        talk.wire.reading = False
        for _ in range(most):
            talk.user(text)
            if talk.wire.close_code is not None:
                break
        assert talk.wire.close_code == 1008
        talk.wire.reading = True
        bench.flush()
        assert talk.gone
        await bench.baseline()


def test_session_created_is_said_unasked_and_nothing_after_the_end() -> None:
    bench = FaceBench()
    wire = FakeWire()
    request = HttpRequest(
        "GET", "/v1/realtime", {"model": "fake"}, {}, b"", ALICE, "r", subprotocol="realtime"
    )
    session = bench.routes.sockets["/v1/realtime"].open(request, wire)
    assert wire.marked
    (created,) = session.render()
    assert json.loads(created)["type"] == "session.created"
    session.closed(1006)
    session.received("{}")
    assert session.render() == []
