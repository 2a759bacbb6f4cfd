"""Bad events by the thousand over one Realtime socket: each gets one well-formed error and nothing else moves."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import msgspec.inspect as shapes
import pytest
from bad_values import FREE, NUMBERS, TEXTS, kinds, mutate
from face_bench import FaceBench
from realtime_bench import Talk

from headrace.server.protocol import realtime as rt

FAMILIES = {"number": NUMBERS, "text": TEXTS, "free": FREE}
USER = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]}


def check_error(error: dict[str, Any], where: Any) -> None:
    assert error["type"] == "invalid_request_error", (where, error)
    assert not re.search(r"0x[0-9a-f]{6}|Traceback|\.py\b|object at", error["message"]), error
    assert error["param"] is None or len(error["param"]) <= 260, error


def cases(type_: type[msgspec.Struct]) -> Iterator[tuple[str, str]]:
    for field in shapes.type_info(type_).fields:  # type: ignore[attr-defined]
        for kind in sorted(kinds(field.type)):
            for value in FAMILIES[kind]:
                yield field.name, value


async def refused(talk: Talk, message: str | bytes, where: Any) -> bool:
    """Whether the message got an error; whatever it began has ended when this returns."""
    talk.pump()
    count = len(talk.reader.errors)
    seen = len(talk.reader.events)
    talk.send(message)
    talk.pump()
    answer = talk.reader.events[seen:]
    assert answer, (where, "silence")
    bad = answer[0]["type"] == "error"
    if bad:
        assert len(answer) == 1, where
        check_error(answer[0]["error"], where)
    assert len(talk.reader.errors) == count + bad, where
    await talk.until(lambda: all(a.final is not None for a in talk.reader.answers.values()))
    return bad


def trimmed(talk: Talk) -> None:
    """Forget what the test has read: the reader keeps everything."""
    if len(talk.reader.events) > 300:
        talk.reader.events.clear()
        talk.raw.clear()
        talk.said.clear()
        talk.reader.events.append({"type": "trimmed"})
        talk.raw.append("")


async def test_every_field_of_a_session_against_the_grid() -> None:
    bench = FaceBench()
    talk = Talk(bench)
    counts = {True: 0, False: 0}
    for field, value in cases(rt.SessionFields):
        good = '"type": "realtime", ' if field != "type" else ""
        message = f'{{"type": "session.update", "session": {{{good}"{field}": {value}}}}}'
        bad = await refused(talk, message.encode("utf-8", "surrogatepass"), (field, value[:60]))
        counts[bad] += 1
        assert not (bad and value == "null"), (field, "null means absent")
        trimmed(talk)
    assert counts[True] > 600 and counts[False] > 100, counts
    talk.drop()
    await bench.baseline()


async def test_every_field_of_a_response_against_the_grid() -> None:
    bench = FaceBench()
    talk = Talk(bench)
    talk.user("hello")
    counts = {True: 0, False: 0}
    for field, value in cases(rt.ResponseFields):
        good = "" if field == "max_output_tokens" else '"max_output_tokens": 1, '
        if field == "max_output_tokens" and value in ("2147483647", "null"):
            continue  # a good value, but a long answer
        message = (
            f'{{"type": "response.create", "response": {{{good}"conversation": "none", "{field}": {value}}}}}'
        )
        bad = await refused(talk, message.encode("utf-8", "surrogatepass"), (field, value[:60]))
        counts[bad] += 1
        assert not (bad and value == "null"), (field, "null means absent")
        trimmed(talk)
    assert counts[True] > 600 and counts[False] > 100, counts
    assert talk.wire.close_code is None
    talk.drop()
    await bench.baseline()


async def test_every_field_of_an_item_against_the_grid() -> None:
    bench = FaceBench()
    talk = Talk(bench)
    counts = {True: 0, False: 0}
    for field, value in itertools.chain(cases(rt.Item), (("previous_item_id", value) for value in TEXTS)):
        inside = field != "previous_item_id"
        item = json.dumps({key: v for key, v in USER.items() if key != field})
        item = f'{item[:-1]}, "{field}": {value}}}' if inside else item
        outside = "" if inside else f', "previous_item_id": {value}'
        message = f'{{"type": "conversation.item.create", "item": {item}{outside}}}'
        counts[await refused(talk, message.encode("utf-8", "surrogatepass"), (field, value[:60]))] += 1
        trimmed(talk)
    assert counts[True] > 150 and counts[False] > 30, counts
    talk.face._conversation.check()
    talk.drop()
    await bench.baseline()


@pytest.mark.parametrize(
    ("message", "code", "param", "malformed"),
    [
        ("", "invalid_json", None, 1),
        ("null", "invalid_json", None, 1),
        ("[]", "invalid_json", None, 1),
        ("{", "invalid_json", None, 1),
        (b"\xff{}", "invalid_json", None, 1),
        ("{}", "missing_required_parameter", "type", 1),
        ('{"type":null}', "missing_required_parameter", "type", 1),
        ('{"type":5}', "invalid_value", "type", 1),
        ('{"type":"zork"}', "unknown_event", "type", 1),
        ('{"type":"' + "z" * 100_000 + '"}', "unknown_event", "type", 1),
        ('{"type":"conversation.item.created"}', "unknown_event", "type", 1),
        ('{"type":"response.create","event_id":5}', "invalid_value", "event_id", 1),
        ('{"type":"response.create","event_id":"' + "e" * 513 + '"}', "invalid_value", "event_id", 1),
        ('{"type":"session.update"}', "missing_required_parameter", "session", 0),
        ('{"type":"session.update","session":5}', "invalid_value", "session", 0),
        ('{"type":"conversation.item.create"}', "missing_required_parameter", "item", 0),
        ('{"type":"conversation.item.delete"}', "missing_required_parameter", "item_id", 0),
        ('{"type":"conversation.item.retrieve","item_id":[]}', "invalid_value", "item_id", 0),
        ('{"type":"response.create","response":[]}', "invalid_value", "response", 0),
        ('{"type":"response.create","response":{"x_new":1}}', "unknown_parameter", "response.x_new", 0),
        ('{"type":"response.create","x_new":1}', "unknown_parameter", "x_new", 0),
        ('{"type":"response.cancel","response_id":5}', "invalid_value", "response_id", 0),
        ("[" * 100_000, "invalid_json", None, 1),
        ('{"type":"session.update","session":' + '{"a":' * 5000 + "1" + "}" * 5001, "invalid_value", None, 1),
        ('{"type":"x","a":[' + "1," * 70_000 + "1]}", "invalid_value", None, 1),
    ],
)
async def test_events_that_are_none(
    message: str | bytes, code: str, param: str | None, malformed: int
) -> None:
    bench = FaceBench()
    talk = Talk(bench)
    talk.said_now()
    talk.send(message)
    (event,) = talk.said_now()
    assert event["error"]["code"] == code and event["error"]["event_id"] is None
    if param is not None:
        assert event["error"]["param"] == param
    assert talk.wire.malformed_count == malformed
    talk.user("still here")
    talk.ask()
    await talk.until_done()
    talk.drop()
    await bench.baseline()


async def test_unknown_fields_are_counted_or_refused() -> None:
    bench = FaceBench()
    talk = Talk(bench)
    talk.said_now()
    talk.send({"type": "session.update", "session": {"voice": "ash", "modalities": ["text"]}, "zork": 1})
    assert talk.said_now()[0]["type"] == "session.updated"
    assert bench.ignored == [("realtime", 3)]
    strict = FaceBench(settings={"strict_fields": True})
    talk = Talk(strict)
    talk.said_now()
    talk.send({"type": "session.update", "session": {"voice": "ash"}})
    (event,) = talk.said_now()
    assert (event["error"]["code"], event["error"]["param"]) == ("unknown_parameter", "session.voice")


async def test_the_parameters_of_a_tool_are_the_schema_of_an_object() -> None:
    """As on every other route: no call could carry a bare number."""
    bench = FaceBench()
    talk = Talk(bench)
    talk.said_now()
    for schema in ({"type": "integer"}, [], "object"):
        tool = {"type": "function", "name": "look", "parameters": schema}
        talk.send({"type": "session.update", "session": {"tools": [tool]}})
        (event,) = talk.said_now()
        where = "session.tools[0].parameters"
        assert (event["error"]["code"], event["error"]["param"]) == ("invalid_value", where)


async def test_event_ids_come_back_whatever_they_are() -> None:
    bench = FaceBench()
    talk = Talk(bench)
    talk.said_now()
    for name in ("", "e" * 512, "é\n\u0000", '"quoted"', "event_1"):
        talk.send({"type": "response.cancel", "event_id": name})
        (event,) = talk.said_now()
        assert event["error"]["event_id"] == name


EVENTS: tuple[dict[str, Any], ...] = (
    {
        "type": "session.update",
        "session": {
            "type": "realtime", "instructions": "Be brief.", "output_modalities": ["text"], "tools": [],
            "truncation": {"type": "retention_ratio", "retention_ratio": 0.5, "token_limits": {}},
            "audio": {"output": {"voice": "ash"}}, "reasoning": {"effort": "low"}, "max_output_tokens": 2,
        },
    },
    {"type": "conversation.item.create", "previous_item_id": "root", "item": {**USER, "id": "a1"}},
    {
        "type": "conversation.item.create",
        "item": {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "y"}]},
    },
    {"type": "conversation.item.delete", "item_id": "a1"},
    {"type": "conversation.item.retrieve", "item_id": "a1"},
    {
        "type": "response.create",
        "response": {
            "conversation": "none", "input": [USER], "metadata": {"a": "b"}, "max_output_tokens": 1, "stop": ["q"],
        },
    },
    {"type": "response.create", "response": {"max_output_tokens": 1, "instructions": "Go."}, "event_id": "e"},
    {"type": "response.cancel", "response_id": "resp_1"},
    {"type": "input_audio_buffer.append", "audio": "AAAA"},
)  # fmt: skip


async def test_mutated_events_never_break_anything() -> None:
    """A thousand seeds; half as bytes with random damage. A failing seed is in the assertion."""
    bench = FaceBench()
    talk = Talk(bench)
    good = 0
    for seed in range(1000):
        rng = random.Random(seed)
        event: Any = EVENTS[seed % len(EVENTS)]
        for _ in range(rng.randint(1, 3)):
            mutated = mutate(rng, event)
            event = mutated if isinstance(mutated, dict) else event
        if event.get("type") == "response.create":
            # What is left of the limit must not make the test long.
            if not isinstance(event.get("response"), dict):
                event["response"] = {}
            event["response"] = {**event["response"], "max_output_tokens": 1}
        data = json.dumps(event).encode()
        if seed % 2:
            damaged = bytearray(data)
            for _ in range(rng.randint(0, 3)):
                damaged[rng.randrange(len(damaged))] = rng.choice(b'{}[]",:0eE-\\n\xff\x00')
            data = bytes(damaged)
        good += not await refused(talk, data, seed)
        talk.face._conversation.check()
        trimmed(talk)
    assert good > 100, "some of them must still be good"
    talk.drop()
    await bench.baseline()
