"""The faces of other protocols under bad input and under any answer: refused by name, and whole equals streamed."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import msgspec.inspect as shapes
import pytest
from bad_values import FREE, NUMBERS, TEXTS, kinds
from face_bench import FaceBench, Fetch
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_model import END
from strict_messages import check_events, check_message

from headrace.server.protocol.messages import CountTokensRequest, MessagesRequest
from headrace.server.protocol.ollama import OllamaChatRequest, OllamaGenerateRequest, OllamaOptions

USER = [{"role": "user", "content": "x"}]
BASE: dict[str, dict[str, Any]] = {
    "/v1/messages": {"model": "fake", "messages": USER, "max_tokens": 1},
    "/v1/messages/count_tokens": {"model": "fake", "messages": USER},
    "/api/chat": {"model": "fake", "messages": USER, "options": {"num_predict": 1}},
    "/api/generate": {"model": "fake", "prompt": "x", "options": {"num_predict": 1}},
}
TYPES: dict[str, type[msgspec.Struct]] = {
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": CountTokensRequest,
    "/api/chat": OllamaChatRequest,
    "/api/generate": OllamaGenerateRequest,
}
FAMILIES = {"number": NUMBERS, "text": TEXTS, "free": FREE}


def small() -> FaceBench:
    """Where a value takes the limit away, the context ends the answer soon."""
    return FaceBench(page_count=8, eos=frozenset({END}), form={"tools": "hermes"})


def grid(type_: type[msgspec.Struct]) -> Iterator[tuple[str, str]]:
    for field in shapes.type_info(type_).fields:  # type: ignore[attr-defined]
        for kind in sorted(kinds(field.type)):
            for value in FAMILIES[kind]:
                yield field.encode_name, value


def with_raw(fields: dict[str, Any], name: str, value: str) -> bytes:
    """A JSON object of these fields and one whose value is this JSON text."""
    rest = json.dumps({key: each for key, each in fields.items() if key != name})[:-1]
    return f'{rest}{", " if len(rest) > 1 else ""}"{name}": {value}}}'.encode("utf-8", "surrogatepass")


def refusal(path: str, fetch: Fetch) -> str:
    """The sentence of a reply that is not 200: one 4xx in the shape of its protocol, without our insides."""
    assert 400 <= fetch.status < 500, fetch.body
    body = fetch.json
    if path.startswith("/api/"):
        assert set(body) == {"error"}
        message = body["error"]
    else:
        assert body["type"] == "error" and set(body["error"]) - {"details"} == {"type", "message"}
        assert body["error"]["type"] in ("invalid_request_error", "not_found_error")
        message = body["error"]["message"]
    assert message and len(message) <= 900
    assert not re.search(r"0x[0-9a-f]{6}|Traceback|\.py\b|object at", message), message
    return message


async def held_against(bench: FaceBench, path: str, body: bytes) -> str | None:
    fetch = bench.fetch(path, body)
    if not fetch.over:
        await fetch.done()
    bench.readers.remove(fetch)
    return None if fetch.status == 200 else refusal(path, fetch)


@pytest.mark.parametrize("path", BASE)
async def test_every_field_against_the_grid(path: str) -> None:
    bench = small()
    served = refused = 0
    for name, value in grid(TYPES[path]):
        message = await held_against(bench, path, with_raw(BASE[path], name, value))
        refused += message is not None
        served += message is None
        if value == "null" and name not in ("model", "messages", "max_tokens"):
            assert message is None, (name, "null means absent")
    assert refused > 200 and served > 50, (refused, served)
    await bench.baseline()


async def test_every_option_against_the_grid() -> None:
    bench = small()
    refused = 0
    for name, value in grid(OllamaOptions):
        options = with_raw({"num_predict": 1}, name, value).decode("utf-8", "surrogatepass")
        message = await held_against(bench, "/api/chat", with_raw(BASE["/api/chat"], "options", options))
        refused += message is not None
        if message is not None and "not a JSON object" not in message and "nested deeper" not in message:
            assert f"options.{name}" in message or "at most" in message or "more than" in message, message
        if value == "null":
            assert message is None, (name, "null means absent")
    assert refused > 200
    await bench.baseline()


# -- whole and streamed ----------------------------------------------------------------------------------------


def saying(answer: bytes) -> Any:
    """Exactly these bytes, one a token, then the end (byte 0)."""

    def choose(tokens: list[int], seed: int, width: int) -> int:
        at = len(tokens) - bytes(tokens).rindex(b"assistant: ") - 11
        return answer[at] if at < len(answer) else 0

    return choose


PIECES = st.sampled_from(["a", "b", "ab", "é", "世", "😀", "\n", '"', "\\", "\u2028", " ", "</a>"])
ANSWERS = st.lists(PIECES, max_size=12).map("".join)
STOPS = st.lists(st.sampled_from(["ab", "b世", "😀😀", "aa", "\n\n", '"']), max_size=2, unique=True)


@settings(max_examples=60, deadline=None)
@given(answer=ANSWERS, stops=STOPS)
def test_streamed_pieces_add_up_to_the_whole_answer(answer: str, stops: list[str]) -> None:
    async def both() -> None:
        bench = FaceBench(choose=saying(answer.encode()), eos=frozenset({0}))
        ends = [answer.find(stop) for stop in stops if stop in answer]
        expected = answer[: min(ends)] if ends else answer
        asked: dict[str, Any] = {
            "model": "fake",
            "messages": USER,
            "max_tokens": 200,
            "stop_sequences": stops,
        }
        whole = check_message((await bench.fetch("/v1/messages", asked).done()).json)
        streamed = check_events((await bench.fetch("/v1/messages", {**asked, "stream": True}).done()).body)
        for message in (whole, streamed):
            assert "".join(block["text"] for block in message["content"]) == expected
            assert message["stop_reason"] == ("stop_sequence" if ends else "end_turn")
        assert {**whole, "id": 0, "usage": 0} == {**streamed, "id": 0, "usage": 0}
        asked = {"model": "fake", "messages": USER, "options": {"stop": stops}}
        one = (await bench.fetch("/api/chat", {**asked, "stream": False}).done()).json
        lines = (await bench.fetch("/api/chat", asked).done()).body.split(b"\n")
        assert lines.pop() == b""
        told = "".join(json.loads(line)["message"]["content"] for line in lines)
        assert told == one["message"]["content"] == expected
        await bench.baseline()

    asyncio.run(both())
