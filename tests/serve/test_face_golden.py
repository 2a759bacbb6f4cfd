"""The golden sequences of the Responses API, event by event and byte by byte, over the socket and over SSE."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
from face_bench import FaceBench
from msgspec import UNSET, UnsetType
from openai.types.responses import Response
from spared import without
from strict_responses import EVENTS, Wrong, check_event, check_response, check_sequence, shape

from headrace.runtime.interface import FinishReason, Message, TokenStream
from headrace.runtime.plan import NON_FINITE
from headrace.runtime.refusal import Refusal
from headrace.runtime.stream import Entry
from headrace.server.faces.responses import ResponseRun, response_error
from headrace.server.protocol.codec import encode
from headrace.server.protocol.responses import ResponseRequest

WHOLE = (
    "created in_progress output_item.added content_part.added delta* "
    "output_text.done content_part.done output_item.done "
)


def stable(raw: str) -> str:
    """The bytes with the random ids replaced."""
    return re.sub(r"(resp|msg)_[0-9a-f]{32}(?:o0)?", r"\1_1", raw)


def run_of(entries: list[str], finish: FinishReason, **fields: Any) -> tuple[ResponseRun, list[str]]:
    """A run over a scripted stream, read after every entry."""
    stream = TokenStream(lambda stream: None, 0.0)
    request = ResponseRequest(model="m", input="x", **fields)
    run = ResponseRun(request, stream, created=1764000000.0, model="m")
    raws: list[str] = []
    stream.times.joined = 0.0
    stream.prompt_tokens = 5
    raws += [encode(event).decode() for event in run.events()]
    for index, text in enumerate(entries):
        stream.push(Entry(index, text))
        raws += [encode(event).decode() for event in run.events()]
    error = Refusal("server_error", "it broke") if finish is FinishReason.ERROR else None
    stream.end(finish, error=error)
    raws += [encode(event).decode() for event in run.events()]
    assert run.done and run.events() == []
    return run, raws


def test_one_text_answer_byte_by_byte() -> None:
    _, raws = run_of(["Hi"], FinishReason.STOP)
    head = (
        '"id":"resp_1","object":"response","created_at":1764000000,"model":"m","output":OUTPUT,'
        '"parallel_tool_calls":true,"tool_choice":"auto","tools":[],"status":"STATUS","error":null,'
        '"incomplete_details":null,"instructions":null,"metadata":{},"temperature":1.0,"top_p":1.0,'
        '"top_logprobs":0,"previous_response_id":null,"max_output_tokens":null,'
        '"reasoning":{"effort":null,"summary":null},"text":{"format":{"type":"text"}},'
        '"truncation":"disabled","store":true,"usage":USAGE'
    )
    part = '{"type":"output_text","text":"Hi","annotations":[],"logprobs":[]}'
    item = f'{{"type":"message","id":"msg_1","role":"assistant","status":"completed","content":[{part}]}}'
    running = (
        "{" + head.replace("OUTPUT", "[]").replace("STATUS", "in_progress").replace("USAGE", "null") + "}"
    )
    usage = (
        '{"input_tokens":5,"input_tokens_details":{"cached_tokens":0,"cache_write_tokens":0},'
        '"output_tokens":1,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":6}'
    )
    ended = (
        "{" + head.replace("OUTPUT", f"[{item}]").replace("STATUS", "completed").replace("USAGE", usage) + "}"
    )
    where = '"item_id":"msg_1","output_index":0,"content_index":0'
    assert [stable(raw) for raw in raws] == [
        f'{{"type":"response.created","sequence_number":0,"response":{running}}}',
        f'{{"type":"response.in_progress","sequence_number":1,"response":{running}}}',
        '{"type":"response.output_item.added","sequence_number":2,"output_index":0,"item":{"type":"message",'
        '"id":"msg_1","role":"assistant","status":"in_progress","content":[]}}',
        f'{{"type":"response.content_part.added","sequence_number":3,{where},'
        '"part":{"type":"output_text","text":"","annotations":[],"logprobs":[]}}',
        f'{{"type":"response.output_text.delta","sequence_number":4,{where},"delta":"Hi","logprobs":[]}}',
        f'{{"type":"response.output_text.done","sequence_number":5,{where},"text":"Hi","logprobs":[]}}',
        f'{{"type":"response.content_part.done","sequence_number":6,{where},"part":{part}}}',
        f'{{"type":"response.output_item.done","sequence_number":7,"output_index":0,"item":{item}}}',
        f'{{"type":"response.completed","sequence_number":8,"response":{ended}}}',
    ]


@pytest.mark.parametrize(
    ("entries", "finish", "words", "status", "reason", "item_status"),
    [
        (["a", "b"], FinishReason.STOP, WHOLE + "completed", "completed", None, "completed"),
        ([], FinishReason.STOP, WHOLE.replace("delta* ", "") + "completed", "completed", None, "completed"),
        (["a"], FinishReason.LENGTH, WHOLE + "incomplete", "incomplete", "max_output_tokens", "incomplete"),
        (["a"], FinishReason.CANCELLED, WHOLE + "incomplete", "cancelled", None, "incomplete"),
        ([], FinishReason.CANCELLED, "created in_progress incomplete", "cancelled", None, None),
        (
            ["a"],
            FinishReason.ERROR,
            "created in_progress output_item.added content_part.added delta* failed",
            "failed",
            None,
            "incomplete",
        ),
        ([], FinishReason.ERROR, "created in_progress failed", "failed", None, None),
        (["", "", "é"], FinishReason.STOP, WHOLE + "completed", "completed", None, "completed"),
    ],
)
def test_every_end_has_its_sequence(
    entries: list[str],
    finish: FinishReason,
    words: str,
    status: str,
    reason: str | None,
    item_status: str | None,
) -> None:
    run, raws = run_of(entries, finish, metadata={"k": "v"}, service_tier="priority", temperature=0.5)
    events = check_sequence(raws)
    assert shape(events) == words
    final = events[-1]["response"]
    assert final["status"] == status
    assert (final["incomplete_details"] or {}).get("reason") == reason
    assert [item["status"] for item in final["output"]] == ([item_status] if item_status else [])
    assert final["metadata"] == {"k": "v"} and final["service_tier"] == "priority"
    assert final["temperature"] == 0.5
    assert run.answer[0].content == "".join(entries)
    deltas = [event["delta"] for event in events if event["type"].endswith(".delta")]
    assert deltas == [text for text in entries if text], "no empty delta"


def test_no_field_of_a_golden_event_can_be_spared() -> None:
    """The validator would notice any field that goes missing, so its approval says something."""
    _, raws = run_of(["Hi"], FinishReason.STOP, service_tier="flex")
    removed = 0
    for raw in raws:
        for where, less in without(json.loads(raw)):
            if where[-1] in ("stream_id", "service_tier"):
                continue
            with pytest.raises(Exception) as caught:  # noqa: PT011  # ours, or the SDK's
                check_event(json.dumps(less))
            assert isinstance(caught.value, Wrong | KeyError) or "validation" in str(caught.value), where
            removed += 1
    assert removed > 150


def test_every_event_type_of_the_table_is_reached_here() -> None:
    seen: set[str] = set()
    for entries, finish in (
        (["a"], FinishReason.STOP),
        (["a"], FinishReason.LENGTH),
        (["a"], FinishReason.ERROR),
    ):
        seen |= {json.loads(raw)["type"] for raw in run_of(entries, finish)[1]}
    tools = {name for name in EVENTS if "call" in name or "reasoning" in name}  # test_face_tools.py
    steers = {name for name in EVENTS if ".steer." in name}  # test_face_steer.py
    assert seen == EVENTS.keys() - steers - tools


@pytest.mark.parametrize("code", sorted(Refusal.CODES))
def test_a_failure_has_a_code_that_strict_clients_know(code: str) -> None:
    error = json.loads(encode(response_error(Refusal(code, "why"))))
    assert error["code"] in ("server_error", "rate_limit_exceeded", "invalid_prompt")
    assert error.get("x_code", error["code"]) == code


def test_waiting_entries_become_one_delta() -> None:
    stream = TokenStream(lambda stream: None, 0.0)
    run = ResponseRun(ResponseRequest(), stream, created=0.0, model="m")
    for index, text in enumerate(["a", "", "b", "c"]):
        stream.push(Entry(index, text))
    events = run.events()
    assert [e.delta for e in events if hasattr(e, "delta")] == ["abc"]


@pytest.mark.parametrize("lane", [UNSET, "lane-1"])
def test_deltas_from_the_template_are_the_encoded_events(lane: str | UnsetType) -> None:
    texts = ["Hi", ' "quoted"', "\\", "\n\t\x00\x7f\u2028", "é€😀", "", '"delta":""', '"sequence_number":0']
    streams = [TokenStream(lambda stream: None, 0.0) for _ in range(2)]
    quick, plain = (
        ResponseRun(ResponseRequest(), stream, created=0.0, model="m", lane=lane) for stream in streams
    )
    raws: list[str] = []
    for index, text in enumerate(["first", *texts]):
        for stream in streams:
            stream.push(Entry(index, text))
        expected = [stable(encode(event).decode()) for event in plain.events()]
        delta = quick.next_delta()
        assert (delta is None) == (index == 0 or not text), "the first one comes with its item"
        told = [encode(event).decode() for event in quick.events()] if delta is None else [delta]
        told = [stable(raw) for raw in told]
        if index:
            assert told == expected
            raws += told
    assert quick.answer == plain.answer == (Message("assistant", "".join(["first", *texts])),)
    assert [json.loads(raw)["delta"] for raw in raws] == [text for text in texts if text]
    for stream in streams:
        stream.push(Entry(9, "last"))
        stream.end(FinishReason.STOP)
    assert quick.next_delta() is None, "the end is more than a delta"
    assert [type(event) for event in quick.events()] == [type(event) for event in plain.events()]


def test_text_that_became_certain_with_the_end_is_part_of_the_answer() -> None:
    for entries in ([], ["a"]):
        stream = TokenStream(lambda stream: None, 0.0)
        run = ResponseRun(ResponseRequest(), stream, created=0.0, model="m")
        for index, text in enumerate(entries):
            stream.push(Entry(index, text))
        stream.push(Entry(9, ""))
        raws = [encode(event).decode() for event in run.events()]
        stream.end(FinishReason.STOP, tail="<EN")
        raws += [encode(event).decode() for event in run.events()]
        final = check_sequence(raws)[-1]["response"]
        assert final["output"][0]["content"][0]["text"] == "".join(entries) + "<EN"


def test_nothing_is_said_before_the_prompt_is_ready() -> None:
    stream = TokenStream(lambda stream: None, 0.0)
    run = ResponseRun(ResponseRequest(), stream, created=0.0, model="m")
    assert run.events() == []
    error = Refusal("context_length_exceeded", "too long", "input")
    stream.end(FinishReason.ERROR, error=error)
    assert run.events() == [] and run.refusal is error and not run.done


async def test_socket_and_http_say_the_same() -> None:
    bench = FaceBench()
    socket = bench.socket()
    socket.create("same", temperature=0.0)
    await socket.until_over()
    events = check_sequence(socket.raw)
    assert shape(events) == WHOLE + "incomplete"
    fetch = await bench.respond("same", temperature=0.0, stream=True).done()
    blocks = [block for block in fetch.body.decode().split("\n\n") if block]
    assert blocks[-1] == "data: [DONE]"
    raws = []
    for block in blocks[:-1]:
        name, data = block.split("\n")
        assert name == "event: " + json.loads(data[6:])["type"]
        raws.append(data[6:])
    over_http = check_sequence(raws)
    assert [stable(raw) for raw in raws][2:-1] == [stable(raw) for raw in socket.raw][2:-1]
    whole = (await bench.respond("same", temperature=0.0).done()).json
    check_response(whole)
    Response.model_validate_json(json.dumps(whole), strict=True)
    texts = [
        e["output"][0]["content"][0]["text"]
        for e in (events[-1]["response"], over_http[-1]["response"], whole)
    ]
    assert len(set(texts)) == 1
    socket.drop()
    await bench.baseline()


async def test_a_device_answer_that_is_not_finite_fails_that_response_alone() -> None:
    bench = FaceBench(
        choose=lambda tokens, seed, width: NON_FINITE if seed == 13 and len(tokens) > 25 else 97
    )
    socket = bench.socket()
    socket.create("hello", stream_id="bad", max_output_tokens=20)
    socket.send(
        {"type": "response.create", "model": "fake", "input": "hello", "seed": 13, "stream_id": "worse"}
    )
    await socket.until_over(2)
    bad = [raw for raw in socket.raw if json.loads(raw).get("stream_id") == "worse"]
    events = check_sequence(bad)
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"]["code"] == "server_error"
    good = check_sequence([raw for raw in socket.raw if raw not in bad])
    assert good[-1]["response"]["output"][0]["content"][0]["text"] == "a" * 20
    socket.drop()
    await bench.baseline()


def test_validator_accepts_what_it_rejects_after_a_change() -> None:
    _, raws = run_of(["Hi"], FinishReason.CANCELLED)
    final = json.loads(raws[-1])
    for path, value in (
        (("response", "status"), "canceled"),
        (("response", "incomplete_details"), {"reason": "cancelled"}),
        (("response", "error"), {"code": "timeout", "message": "x"}),
        (("response", "output", 0, "status"), "cancelled"),
        (("response", "created_at"), "now"),
    ):
        broken = copy.deepcopy(final)
        inner = broken
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        with pytest.raises(Wrong):
            check_event(json.dumps(broken))
    check_event(json.dumps(final))
