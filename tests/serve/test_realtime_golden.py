"""The golden sequences of the Realtime protocol, event by event and byte by byte."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from face_bench import FaceBench
from realtime_bench import Talk
from spared import without
from strict_realtime import EVENTS, MODELS, Reader, Wrong, check_event

from headrace.runtime.interface import FinishReason, TokenStream
from headrace.runtime.plan import NON_FINITE
from headrace.runtime.refusal import Refusal
from headrace.runtime.stream import Entry
from headrace.server.faces.realtime import EventIds, RealtimeRun
from headrace.server.faces.realtime_conversation import RealtimeConversation
from headrace.server.faces.realtime_session import RealtimeSession
from headrace.server.protocol import realtime_events as ev
from headrace.server.protocol.codec import encode
from headrace.server.session import WaitingBudget

ITEM_OPENS = "output_item.added conversation.item.added content_part.added "
ITEM_CLOSES = "output_text.done content_part.done conversation.item.done output_item.done "
WHOLE = "created " + ITEM_OPENS + "delta* " + ITEM_CLOSES + "done rate_limits.updated"


def shape(types: list[str]) -> str:
    """The sequence as words, runs of deltas as one."""
    words = " ".join(kind.removeprefix("response.") for kind in types)
    return re.sub(r"(output_text\.delta ?)+", "delta* ", words).strip()


def stable(raw: str) -> str:
    """The bytes with the random ids replaced."""
    return re.sub(r"(resp|item|conv|event)_[0-9a-f]{32}", r"\1", raw)


def opening() -> str:
    """A session.created, which the reader wants to see first."""
    session = RealtimeSession("m", 1764003600)
    return encode(ev.SessionCreated("event_" + "0" * 32, session.object())).decode()


def run_of(
    entries: list[str], finish: FinishReason, *, in_band: bool = True, cancelled: bool = False
) -> tuple[RealtimeRun, list[str], Reader]:
    """A run over a scripted stream, read after every entry."""
    stream = TokenStream(lambda stream: None, 0.0)
    conversation = RealtimeConversation(WaitingBudget(1 << 20)) if in_band else None
    run = RealtimeRun(stream, EventIds(), conversation, metadata={"k": "v"})
    run.cancelled = cancelled
    raws = [encode(run.created()).decode()]
    stream.times.joined = 0.0
    stream.prompt_tokens = 5
    for index, text in enumerate(entries):
        stream.push(Entry(index, text))
        raws += [encode(event).decode() for event in run.events()]
    error = Refusal("server_error", "it broke") if finish is FinishReason.ERROR else None
    stream.end(finish, error=error)
    raws += [encode(event).decode() for event in run.events()]
    assert run.done and run.events() == []
    reader = Reader()
    for raw in [opening(), *raws]:
        reader.take(raw)
    if conversation is not None:
        conversation.check()
        assert [item["id"] for item in reader.items] == [item.id for item in conversation.context()]
    return run, raws, reader


def test_one_text_answer_byte_by_byte() -> None:
    _, raws, _ = run_of(["Hi"], FinishReason.STOP)
    item = (
        '{"type":"message","id":"item","object":"realtime.item","status":"STATUS","role":"assistant",'
        '"content":CONTENT}'
    )
    opened = item.replace("STATUS", "in_progress").replace("CONTENT", "[]")
    closed = item.replace("STATUS", "completed").replace("CONTENT", '[{"type":"output_text","text":"Hi"}]')
    response = (
        '{"object":"realtime.response","id":"resp","status":"STATUS","status_details":null,"output":OUTPUT,'
        '"conversation_id":"conv","output_modalities":["text"],"max_output_tokens":"inf","metadata":{"k":"v"},'
        '"usage":USAGE}'
    )
    usage = (
        '{"total_tokens":6,"input_tokens":5,"output_tokens":1,"input_token_details":{"text_tokens":5,'
        '"audio_tokens":0,"image_tokens":0,"cached_tokens":0,"cached_tokens_details":{"text_tokens":0,'
        '"audio_tokens":0,"image_tokens":0}},"output_token_details":{"text_tokens":1,"audio_tokens":0}}'
    )
    begun = response.replace("STATUS", "in_progress").replace("OUTPUT", "[]").replace("USAGE", "null")
    ended = response.replace("STATUS", "completed").replace("OUTPUT", f"[{closed}]").replace("USAGE", usage)
    where = '"response_id":"resp","item_id":"item","output_index":0,"content_index":0'
    expected = [
        ("response.created", f'"response":{begun}'),
        ("response.output_item.added", f'"response_id":"resp","output_index":0,"item":{opened}'),
        ("conversation.item.added", f'"previous_item_id":null,"item":{opened}'),
        ("response.content_part.added", where + ',"part":{"type":"text","text":""}'),
        ("response.output_text.delta", where + ',"delta":"Hi"'),
        ("response.output_text.done", where + ',"text":"Hi"'),
        ("response.content_part.done", where + ',"part":{"type":"text","text":"Hi"}'),
        ("conversation.item.done", f'"previous_item_id":null,"item":{closed}'),
        ("response.output_item.done", f'"response_id":"resp","output_index":0,"item":{closed}'),
        ("response.done", f'"response":{ended}'),
        ("rate_limits.updated", '"rate_limits":[]'),
    ]
    assert [stable(raw) for raw in raws] == [
        f'{{"type":"{kind}","event_id":"event_{number}",{rest}}}'
        for number, (kind, rest) in enumerate(expected, start=1)
    ]


@pytest.mark.parametrize(
    ("entries", "finish", "cancelled", "words", "status", "item_status"),
    [
        (["a", "b"], FinishReason.STOP, False, WHOLE, "completed", "completed"),
        ([], FinishReason.STOP, False, WHOLE.replace("delta* ", ""), "completed", "completed"),
        (["", "", "é"], FinishReason.STOP, False, WHOLE, "completed", "completed"),
        (["a"], FinishReason.LENGTH, False, WHOLE, "incomplete", "incomplete"),
        (["a"], FinishReason.CANCELLED, True, WHOLE, "cancelled", "incomplete"),
        ([], FinishReason.CANCELLED, True, "created done rate_limits.updated", "cancelled", None),
        (["a"], FinishReason.CANCELLED, False, WHOLE, "failed", "incomplete"),
        (["a"], FinishReason.ERROR, False, WHOLE, "failed", "incomplete"),
        ([], FinishReason.ERROR, False, "created done rate_limits.updated", "failed", None),
    ],
)
def test_every_end_has_its_sequence(
    entries: list[str],
    finish: FinishReason,
    cancelled: bool,
    words: str,
    status: str,
    item_status: str | None,
) -> None:
    for in_band in (True, False):
        _, _, reader = run_of(entries, finish, in_band=in_band, cancelled=cancelled)
        expected = words if in_band else re.sub(r"conversation\.item\.\w+ ", "", words)
        assert shape(reader.types[1:]) == expected
        (final,) = reader.finals
        assert final["status"] == status
        assert [item["status"] for item in final["output"]] == ([item_status] if item_status else [])
        assert (final["conversation_id"] is None) == (not in_band)
        (answer,) = reader.answers.values()
        assert answer.text == "".join(entries)
        if status == "failed":
            code = "server_error" if finish is FinishReason.ERROR else "server_is_overloaded"
            assert final["status_details"]["error"]["code"] == code


def test_no_field_of_a_golden_event_can_be_spared() -> None:
    """The validator would notice any field that goes missing, so its approval says something."""
    _, raws, _ = run_of(["Hi"], FinishReason.LENGTH)
    removed = 0
    for raw in [opening(), *raws]:
        for where, less in without(json.loads(raw)):
            if where[-1] == "k":
                continue
            with pytest.raises(Exception) as caught:  # noqa: PT011  # ours, or the SDK's
                check_event(json.dumps(less))
            assert isinstance(caught.value, Wrong | KeyError) or "validation" in str(caught.value), where
            removed += 1
    assert removed > 140


def test_the_reader_sees_a_wrong_order() -> None:
    _, raws, _ = run_of(["Hi", " there"], FinishReason.STOP)

    def read(broken: list[str]) -> None:
        reader = Reader()
        for raw in [opening(), *broken]:
            reader.take(raw)
        reader.rest()

    read(raws)
    for index in range(len(raws)):
        for broken in (raws[:index] + raws[index + 1 :], raws[: index + 1] + raws[index:]):
            with pytest.raises((Wrong, KeyError, ValueError, IndexError)):
                read(broken)
    for index in range(len(raws) - 1):
        if index == 4:
            continue  # two deltas
        with pytest.raises((Wrong, KeyError, ValueError, IndexError)):
            read([*raws[:index], raws[index + 1], raws[index], *raws[index + 2 :]])


def test_every_event_that_is_known_here_is_one_of_the_sdk() -> None:
    assert EVENTS.keys() <= MODELS.keys()


def test_deltas_from_the_template_are_the_encoded_events() -> None:
    texts = ["Hi", ' "quoted"', "\\", "\n\t\x00\x7f\u2028", "é€😀", "", '"delta":""', '"event_id":"']
    streams = [TokenStream(lambda stream: None, 0.0) for _ in range(2)]
    quick, plain = (RealtimeRun(stream, EventIds(), None) for stream in streams)
    for index, text in enumerate(["first", *texts]):
        for stream in streams:
            stream.push(Entry(index, text))
        expected = [stable(encode(event).decode()) for event in plain.events()]
        delta = quick.next_delta()
        assert (delta is None) == (index == 0 or not text), "the first one comes with its item"
        told = [encode(event).decode() for event in quick.events()] if delta is None else [delta]
        assert [stable(raw) for raw in told] == expected
        if text:
            assert json.loads(told[-1])["delta"] == text
    for stream in streams:
        stream.push(Entry(9, "last"))
        stream.end(FinishReason.STOP)
    assert quick.next_delta() is None, "the end is more than a delta"
    assert [type(event) for event in quick.events()] == [type(event) for event in plain.events()]


def test_text_that_became_certain_with_the_end_is_part_of_the_answer() -> None:
    for entries in ([], ["a"]):
        stream = TokenStream(lambda stream: None, 0.0)
        run = RealtimeRun(stream, EventIds(), None)
        for index, text in enumerate(entries):
            stream.push(Entry(index, text))
        events: list[Any] = [run.created(), *run.events()]
        stream.end(FinishReason.STOP, tail="<EN")
        events += run.events()
        reader = Reader()
        for raw in [opening(), *(encode(event).decode() for event in events)]:
            reader.take(raw)
        assert reader.answers[run.id].text == "".join(entries) + "<EN"


async def test_an_answer_of_the_server_is_that_sequence() -> None:
    bench = FaceBench()
    talk = Talk(bench)
    talk.user("hello", event_id="event_of_mine")
    talk.ask(metadata={"k": "v"})
    (final,) = await talk.until_done()
    words = "session.created conversation.item.added conversation.item.done " + WHOLE
    assert shape(talk.reader.types) == words
    assert final["metadata"] == {"k": "v"} and final["max_output_tokens"] == 5
    assert final["usage"]["input_tokens"] == len("user: hello\nassistant: ")
    assert final["usage"]["output_tokens"] == 5
    assert [item["role"] for item in talk.reader.items] == ["user", "assistant"]
    created = talk.reader.events[0]["session"]
    assert created["expires_at"] == 1_764_000_000 + 1000 + 3600 and created["model"] == "fake"
    talk.drop()
    await bench.baseline()


async def test_a_device_answer_that_is_not_finite_fails_that_response_alone() -> None:
    bench = FaceBench(choose=lambda tokens, seed, width: NON_FINITE if len(tokens) > 30 and seed == 2 else 97)
    talk = Talk(bench)
    talk.user("hello")
    talk.ask(seed=2, max_output_tokens=20)
    (final,) = await talk.until_done()
    assert final["status"] == "failed"
    assert final["status_details"]["error"] == {
        "type": "server_error",
        "code": "server_error",
        "message": final["status_details"]["error"]["message"],
    }
    talk.ask(seed=1)
    assert (await talk.until_done(2))[1]["status"] == "incomplete", "the session lives on"
    talk.drop()
    await bench.baseline()
