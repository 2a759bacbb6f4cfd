"""Recorded bytes and stamps: when tokens came and how many, as the events of each dialect tell it."""

from __future__ import annotations

import msgspec
import pytest
from bench_wire import DONE, chat, cuts, event, usage
from hypothesis import given
from hypothesis import strategies as st

from headrace.bench.reading import (
    ChatReading,
    EventReader,
    Reading,
    ResponsesReading,
    Text,
    count,
    explain_body,
    portions,
)
from headrace.bench.record import Chunk


def read(reading: Reading, *pieces: bytes) -> Reading:
    """Pieces that arrived at 0, 10, 20, ..."""
    events = EventReader()
    for place, piece in enumerate(pieces):
        for at_ns, payload in events.feed(place * 10, piece):
            reading.read(at_ns, payload)
    return reading


def test_an_event_has_come_with_its_last_byte() -> None:
    stream = b"event: a\ndata: one\n\n: comment\n\ndata: two\r\ndata: lines\r\n\r\ndata:three\n\n"
    for parts in cuts(stream):
        events = EventReader()
        arrived = 0
        found = []
        for part in parts:
            arrived += len(part)
            found += events.feed(arrived, part)
        assert [payload for _, payload in found] == [b"one", b"two\nlines", b"three"]
        ends = [stream.index(b"one") + 5, stream.index(b"lines") + 9, len(stream)]
        seen = 0
        for (at, _), end in zip(found, ends, strict=True):
            # The stamp is that of the part which brought the event's last byte, not of an earlier or later one.
            total = 0
            for part in parts:
                total += len(part)
                if total >= end:
                    break
            assert at == total and at >= seen
            seen = at


def test_a_role_is_no_token() -> None:
    pieces = (
        chat("", "assistant"),
        chat("Hi"),
        chat(None),
        chat(" you"),
        chat(None, finish="stop"),
        usage(5, 2),
        DONE,
    )
    reading = read(ChatReading(), *pieces)
    assert reading.chunks() == [Chunk(10, 1), Chunk(30, 1)]
    assert (reading.prompt_tokens, reading.output_tokens, reading.finish) == (5, 2, "stop")
    assert reading.over and reading.text == "Hi you"


def test_merged_chunks_hold_what_usage_says() -> None:
    reading = read(ChatReading(), chat("abc"), chat("abcdef"), chat("abc"), usage(1, 8), DONE)
    assert reading.chunks() == [Chunk(0, 2), Chunk(10, 4), Chunk(20, 2)]


def test_totals_on_every_chunk_decide() -> None:
    def told(text: str, total: int) -> bytes:
        return event({"choices": [{"delta": {"content": text}}], "usage": {"completion_tokens": total}})

    reading = read(ChatReading(), told("a", 1), told("a", 4), told("a", 4), told("a", 5), usage(1, 6), DONE)
    assert reading.chunks() == [Chunk(0, 1), Chunk(10, 3), Chunk(30, 2)]


def test_reasoning_and_tool_calls_are_tokens() -> None:
    def delta(**fields: object) -> bytes:
        return event({"choices": [{"delta": fields}]})

    reading = read(
        ChatReading(),
        delta(reasoning_content="hm"),
        delta(reasoning="hm"),
        delta(tool_calls=[{"index": 0, "function": {"arguments": "{"}}]),
        delta(content="so"),
    )
    assert len(reading.chunks()) == 4 and reading.text == "so"


def test_completions_say_text() -> None:
    reading = read(
        ChatReading(),
        event({"choices": [{"index": 0, "text": "a", "finish_reason": None}], "usage": None}),
        event({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}),
        usage(3, 1),
        DONE,
    )
    assert reading.chunks() == [Chunk(0, 1)] and (reading.finish, reading.prompt_tokens) == ("length", 3)


def test_without_usage_events_are_counted() -> None:
    reading = read(ChatReading(), chat("a"), chat("b"), DONE)
    assert reading.chunks() == [Chunk(0, 1), Chunk(10, 1)] and reading.output_tokens is None


def response(kind: str, **fields: object) -> bytes:
    return event({"type": kind, "sequence_number": 0} | fields)


def test_responses_events() -> None:
    told = {"input_tokens": 7, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 4}}
    reading = read(
        ResponsesReading(),
        response("response.created", response={"id": "resp_1", "error": None, "usage": None}),
        response("response.output_item.added", item={"type": "message"}),
        response("response.output_text.delta", delta="", logprobs=[]),
        response("response.output_text.delta", delta="one"),
        response("response.reasoning_text.delta", delta="two"),
        response("response.output_text.done", text="one"),
        response(
            "response.incomplete",
            response={"id": "resp_1", "incomplete_details": {"reason": "max_output_tokens"}, "usage": told},
        ),
        DONE,
    )
    assert reading.chunks() == [Chunk(30, 1), Chunk(40, 1)]
    assert (reading.prompt_tokens, reading.output_tokens, reading.cached_tokens) == (7, 2, 4)
    assert (reading.finish, reading.response_id, reading.over) == ("length", "resp_1", True)
    assert reading.text == "one"


@pytest.mark.parametrize(
    ("fields", "finish"),
    [
        ({"type": "response.completed", "response": {"status": "completed"}}, "stop"),
        ({"type": "response.incomplete", "response": {"status": "cancelled"}}, "cancelled"),
    ],
)
def test_how_responses_end(fields: dict[str, object], finish: str) -> None:
    assert read(ResponsesReading(), event(fields)).finish == finish


@pytest.mark.parametrize(
    ("reading", "told", "error"),
    [
        (ChatReading(), {"error": {"message": "no", "type": "t", "code": None}}, "t: no"),
        (ChatReading(), {"choices": "none"}, "unreadable event"),
        (
            ResponsesReading(),
            {"type": "error", "error": {"code": "c", "message": "no"}, "status": 400},
            "c: no",
        ),
        (ResponsesReading(), {"type": "error", "code": "c", "message": "no"}, "c: no"),
        (
            ResponsesReading(),
            {"type": "response.failed", "response": {"error": {"code": "server_error", "message": "no"}}},
            "server_error: no",
        ),
    ],
)
def test_errors_in_a_stream(reading: Reading, told: dict[str, object], error: str) -> None:
    assert (read(reading, event(told)).error or "").startswith(error)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (
            b'{"error":{"message":"bad key","type":"auth","code":"invalid_api_key"}}',
            "HTTP 401: invalid_api_key: bad key",
        ),
        (b'{"detail":[{"loc":["body"],"msg":"extra field","type":"extra"}]}', "HTTP 401: extra: extra field"),
        (b'{"message":"flat"}', "HTTP 401: flat"),
        (b"<html>", "HTTP 401: <html>"),
        (b"", "HTTP 401: Unauthorized"),
    ],
)
def test_error_bodies_of_any_server(body: bytes, told: str) -> None:
    assert explain_body(401, "Unauthorized", body) == told


def test_fewer_tokens_than_events_leaves_the_longer_gaps() -> None:
    texts = [Text(0, 1), Text(10, 1), Text(11, 1), Text(30, 1)]
    assert count(texts, 3) == [Chunk(0, 1), Chunk(10, 1), Chunk(30, 1)]
    assert count(texts, 1) == [Chunk(0, 1)]
    assert count(texts, 0) == [Chunk(0, 1)], "text came, so there was a token: usage is what is wrong"
    assert count([], 5) == []


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=30), extra=st.integers(0, 200))
def test_portions_add_up_and_follow_size(sizes: list[int], extra: int) -> None:
    found = portions(len(sizes) + extra, sizes)
    assert sum(found) == len(sizes) + extra and min(found) >= 1
    for size, portion in zip(sizes, found, strict=True):
        assert abs(portion - 1 - extra * size / sum(sizes)) < 1


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=20),
    total=st.integers(1, 60),
    gaps=st.lists(st.integers(0, 5), min_size=20, max_size=20),
)
def test_counts_are_usage_and_gaps_do_not_depend_on_where_a_surplus_goes(
    sizes: list[int], total: int, gaps: list[int]
) -> None:
    stamps = [sum(gaps[: place + 1]) for place in range(len(sizes))]
    texts = [Text(at, size) for at, size in zip(stamps, sizes, strict=True)]
    chunks = count(texts, total)
    assert sum(chunk.tokens for chunk in chunks) == total and chunks[0].at_ns == stamps[0]
    if total >= len(sizes):
        assert [chunk.at_ns for chunk in chunks] == stamps


def test_typed_events_take_what_servers_send_besides() -> None:
    chunk = {
        "id": "x",
        "choices": [{"delta": {"content": "a", "refusal": None}, "logprobs": None}],
        "usage": None,
    }
    reading = ChatReading()
    reading.read(1, msgspec.json.encode(chunk))
    assert reading.error is None and reading.chunks() == [Chunk(1, 1)]
