"""Warm-up, and conversations that are too long: what the engine reads, and what is said of it."""

from __future__ import annotations

from typing import Any

import pytest
from face_bench import FaceBench
from face_said import errors, finals, prompt_of
from strict_responses import check_response, check_sequence, shape

from headrace.runtime.interface import Ask, Message, Prompt
from headrace.runtime.refusal import Refusal
from headrace.runtime.truncation import ANSWER_ROOM, prepare_within

INSTRUCTIONS = "Answer in the manner of a lighthouse keeper. " * 4


@pytest.mark.parametrize("fields", [{"generate": False}, {"prompt_cache_options": {"prewarm": True}}])
@pytest.mark.parametrize("store", [True, False])
async def test_a_warm_up_reads_the_prompt_and_the_next_request_finds_it(
    fields: dict[str, Any], store: bool
) -> None:
    bench = FaceBench()
    socket = bench.socket()
    socket.create("The sea is calm.", instructions=INSTRUCTIONS, store=store, stream_id="a", **fields)
    await socket.until_over()
    events = check_sequence(socket.raw)
    assert shape(events) == "created in_progress completed"
    warm = events[-1]["response"]
    prompt = len(f"system: {INSTRUCTIONS}\nuser: The sea is calm.\nassistant: ")
    assert warm["output"] == [] and warm["status"] == "completed"
    assert (warm["usage"]["input_tokens"], warm["usage"]["output_tokens"]) == (prompt, 0)
    assert warm["usage"]["total_tokens"] == prompt
    socket.create("And now?", instructions=INSTRUCTIONS, previous_response_id=warm["id"], stream_id="a")
    await socket.until_over(2)
    assert prompt_of(bench) == (
        f"system: {INSTRUCTIONS}\nuser: The sea is calm.\nuser: And now?\nassistant: "
    )
    cached = finals(socket)[1]["usage"]["input_tokens_details"]["cached_tokens"]
    assert cached >= (prompt - len("assistant: ")) // 16 * 16 > 100
    socket.drop()
    await bench.baseline()


async def test_a_warm_up_needs_no_input() -> None:
    bench = FaceBench()
    socket = bench.socket()
    socket.send({"type": "response.create", "model": "fake", "generate": False, "instructions": INSTRUCTIONS})
    socket.send({"type": "response.create", "model": "fake", "generate": False, "input": []})
    await socket.until_over(2)
    first, second = finals(socket)
    assert first["usage"]["input_tokens"] == len(f"system: {INSTRUCTIONS}\nassistant: ")
    assert second["usage"]["total_tokens"] == 0 and second["status"] == "completed"
    assert len(bench.asks) == 1, "nothing was to be read"
    socket.create("hello", previous_response_id=second["id"])
    await socket.until_over(3)
    assert prompt_of(bench) == "user: hello\nassistant: " and not errors(socket)
    socket.drop()
    await bench.baseline()


async def test_a_warm_up_is_one_prefill_and_no_more() -> None:
    bench = FaceBench()
    socket = bench.socket()
    socket.create("x" * 500, generate=False, max_output_tokens=300)
    await socket.until_over()
    await bench.idle()
    counters = bench.scheduler.counters
    assert counters.prefill_tokens_computed == len("user: \nassistant: ") + 500
    assert counters.decode_tokens_computed == 1, "the sample at the end of every prompt"


async def test_a_warm_up_that_is_cancelled_or_refused() -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket()
    socket.create("x" * 300, generate=False)
    await socket.until(lambda: bool(socket.said))
    socket.send({"type": "response.cancel"})
    await socket.until_over()
    assert check_sequence(socket.raw)[-1]["response"]["status"] == "cancelled"
    socket.create("x" * 9000, generate=False)
    await socket.until_over(2)
    assert errors(socket)[0]["error"]["code"] == "context_length_exceeded"
    socket.drop()
    await bench.baseline()


async def test_a_warm_up_over_http() -> None:
    bench = FaceBench()
    reply = await bench.respond("hello", prompt_cache_options={"prewarm": True}).done()
    check_response(reply.json)
    assert reply.status == 200 and reply.json["output"] == []
    more = await bench.respond("more", previous_response_id=reply.json["id"]).done()
    assert more.status == 200 and prompt_of(bench) == "user: hello\nuser: more\nassistant: "


# -- truncation ------------------------------------------------------------------------------------------------


class Words:
    """A prompter of words: its prompt is the words of all messages; longer than `most` it refuses to look."""

    def __init__(self, most: int = 10_000) -> None:
        self.most = most
        self.calls = 0

    def prepare(self, ask: Ask) -> Prompt:
        self.calls += 1
        assert ask.messages is not None
        count = sum(len(message.content.split()) for message in ask.messages)
        if count > self.most:
            raise Refusal("context_length_exceeded", "too long", "input")
        return Prompt(tuple(range(count)))


def conversation(turns: int, words: int) -> tuple[Message, ...]:
    told = [Message("system", "be kind")]
    for number in range(turns):
        told += [Message("user", f"q{number} " * words), Message("assistant", f"a{number} " * words)]
    return (*told, Message("user", "last " * words))


@pytest.mark.parametrize("turns", [0, 1, 2, 7, 200])
@pytest.mark.parametrize("limit", [30, 60, 150, 100_000])
@pytest.mark.parametrize("most", [40, 10_000])
def test_the_fewest_oldest_turns_are_dropped(turns: int, limit: int, most: int) -> None:
    prompter: Any = Words(most)
    ask = Ask(messages=conversation(turns, 10), max_tokens=5, drop_oldest=True)
    kept = next((k for k in range(turns, -1, -1) if 2 + 10 + 20 * k <= min(limit - 5, most)), None)
    assert kept is not None, "the last turn fits in all of these"
    assert len(prepare_within(prompter, ask, limit).ids) == 2 + 10 + 20 * kept
    assert prompter.calls <= 11, "few renderings, however long the conversation is"


def test_without_a_bound_the_answer_has_room() -> None:
    prompter: Any = Words()
    ask = Ask(messages=conversation(500, 10), drop_oldest=True)
    assert 8000 - ANSWER_ROOM - 20 < len(prepare_within(prompter, ask, 8000).ids) <= 8000 - ANSWER_ROOM
    assert len(prepare_within(prompter, ask, 400).ids) <= 300


def test_what_no_dropping_helps_is_judged_as_ever() -> None:
    prompter: Any = Words(20)
    ask = Ask(messages=conversation(3, 30), max_tokens=5, drop_oldest=True)
    with pytest.raises(Refusal) as caught:
        prepare_within(prompter, ask, 20)
    assert caught.value.code == "context_length_exceeded"
    asked: Any = Words()
    assert len(prepare_within(asked, Ask(messages=conversation(3, 30), max_tokens=5), 20).ids) == 212


async def test_truncation_over_the_socket() -> None:
    bench = FaceBench(page_count=16)  # 256 tokens
    socket = bench.socket()
    socket.create("first question " + "x" * 80, store=False)
    await socket.until_over()
    socket.create("second question " + "y" * 80, store=False, previous_response_id=finals(socket)[0]["id"])
    await socket.until_over(2)
    third = {"input": "third " + "z" * 60, "store": False, "previous_response_id": finals(socket)[1]["id"]}
    socket.create(**third, truncation="auto", instructions="be kind")
    await socket.until_over(3)
    check_sequence(_last(socket.raw))
    final = finals(socket)[2]
    assert final["truncation"] == "auto" and finals(socket)[0]["truncation"] == "disabled"
    assert prompt_of(bench).startswith("system: be kind\nuser: second question ")
    socket.create(**{**third, "previous_response_id": final["id"]})
    await socket.until_over(4)
    assert errors(socket)[0]["error"]["code"] == "context_length_exceeded"
    socket.drop()
    await bench.baseline()


def _last(raws: list[str]) -> list[str]:
    at = max(i for i, raw in enumerate(raws) if '"response.created"' in raw)
    return raws[at:]
