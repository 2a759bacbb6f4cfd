"""Logprobs and several answers on chat completions, and logprobs on Responses, over the fake engine."""

from __future__ import annotations

import json
from typing import Any

import pytest
from face_bench import FaceBench
from fake_engine import likely, replay
from fake_prompter import BytePrompter, letters
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from strict_responses import check_response, check_sequence

from headrace.runtime.request import SamplingParams

END = 10
PROMPT = b"user: hello\nassistant: "
INCLUDE = ["message.output_text.logprobs"]


def said(count: int = 5, seed: int = 1, prompt: bytes = PROMPT) -> list[int]:
    """The fake model's answer."""
    return replay(list(prompt), count, SamplingParams(seed=seed), 256, letters)


def entries(answer: list[int], top: int, *, eos: int = -1, empty: Any = None) -> list[dict[str, Any]]:
    """`logprobs.content` by the oracle; empty: the bytes of a token without text."""
    found = []
    for place, token in enumerate(answer):
        ranked = likely([*PROMPT, *answer[:place]], 256)

        def named(each: int) -> dict[str, Any]:
            if each == eos:
                return {"token": f"<end {eos}>", "bytes": empty}
            return {"token": bytes([each]).decode("utf-8", "replace"), "bytes": [each]}

        likeliest = [{**named(rank), "logprob": value} for rank, value in ranked[:top]]
        found.append({**named(token), "logprob": dict(ranked)[token], "top_logprobs": likeliest})
    return found


# -- chat ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top", [0, 1, 20])
async def test_chat_logprobs_whole_and_streamed(top: int) -> None:
    bench = FaceBench()
    fields = {"logprobs": True, **({"top_logprobs": top} if top else {})}
    reply = (await bench.chat(**fields).done()).json
    ChatCompletion.model_validate_json(json.dumps(reply), strict=True)
    expected = entries(said(), top)
    assert reply["choices"][0]["logprobs"] == {"content": expected, "refusal": None}
    chunks = (await bench.chat(stream=True, **fields).done()).data
    for chunk in chunks:
        ChatCompletionChunk.model_validate_json(json.dumps(chunk), strict=True)
    found = [each for chunk in chunks for c in chunk["choices"] for each in c["logprobs"]["content"]]
    assert found == expected
    assert len(chunks) == 5, "one chunk a token"
    await bench.baseline()


async def test_no_logprobs_unless_asked_for() -> None:
    bench = FaceBench()
    for fields in ({}, {"logprobs": False}, {"top_logprobs": 0}, {"logprobs": False, "top_logprobs": 0}):
        reply = (await bench.chat(**fields).done()).json
        assert "logprobs" not in reply["choices"][0]
    fetch = await bench.chat(top_logprobs=2).done()
    assert fetch.status == 400 and fetch.json["error"]["param"] == "top_logprobs"
    for wrong in (-1, 21, 10**9):
        fetch = await bench.chat(logprobs=True, top_logprobs=wrong).done()
        assert fetch.status == 400 and fetch.json["error"]["param"] == "top_logprobs"
    assert not any(plan.probes for plan in bench.engine.plans), "and no step was asked for any"


async def test_logprobs_of_the_token_that_ends_an_answer() -> None:
    """One entry for each completion token; the bytes of all entries are the text."""
    answer = said(12)
    eos = answer[4]
    answer = answer[: answer.index(eos) + 1]
    bench = FaceBench(eos=frozenset({eos}))
    for stream in (False, True):
        fetch = await bench.chat(max_tokens=12, logprobs=True, top_logprobs=2, stream=stream).done()
        replies = fetch.data if stream else [fetch.json]
        found = [e for r in replies for c in r["choices"] for e in c["logprobs"]["content"]]
        assert found == entries(answer, 2, eos=eos)
        told = b"".join(bytes(each["bytes"] or ()) for each in found)
        assert told == bytes(answer[:-1])


async def test_text_that_is_held_back_brings_its_logprobs_later() -> None:
    """A stop string that does not come, half a character: the chunk with the text has those of all its tokens."""
    bench = FaceBench(choose=lambda tokens, seed, width: b"a\xe2\x82\xacxyz"[(len(tokens) - len(PROMPT)) % 7])
    chunks = (await bench.chat(max_tokens=7, stop=["xyq"], logprobs=True, stream=True).done()).data
    told = [
        (c["delta"].get("content", ""), [each["bytes"] for each in c["logprobs"]["content"]])
        for chunk in chunks
        for c in chunk["choices"]
    ]
    assert told == [
        ("a", [[97]]),
        ("€", [[0xE2], [0x82], [0xAC]]),
        ("xyz", [[120], [121], [122]]),
    ]


async def test_several_answers_to_one_chat() -> None:
    bench = FaceBench()
    reply = (await bench.chat(n=3).done()).json
    ChatCompletion.model_validate_json(json.dumps(reply), strict=True)
    expected = [bytes(said(seed=seed)).decode() for seed in (1, 2, 3)]
    assert [choice["message"]["content"] for choice in reply["choices"]] == expected
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    assert reply["usage"]["prompt_tokens"] == len(PROMPT) and reply["usage"]["completion_tokens"] == 15
    computed = sum(row.count for plan in bench.engine.plans for row in plan.prefill)
    assert computed <= len(PROMPT) + 2, "one prefill; the others feed its last token again"
    options = {"include_usage": True}
    chunks = (await bench.chat(n=3, stream=True, stream_options=options, logprobs=True).done()).data
    for index, text in enumerate(expected):
        own = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert "".join(c["delta"].get("content", "") for c in own) == text
        assert own[0]["delta"]["role"] == "assistant" and "role" not in own[1]["delta"]
        assert [c["finish_reason"] for c in own] == [None] * (len(own) - 1) + ["length"]
        assert sum(len(c["logprobs"]["content"]) for c in own) == 5
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 15
    for wrong in (0, 17):
        assert (await bench.chat(n=wrong).done()).status == 400
    await bench.baseline()


async def test_each_of_several_answers_follows_the_grammar_by_itself() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    shape = {"type": "json_schema", "json_schema": {"name": "one", "schema": schema}}
    bench = FaceBench(eos=frozenset({END}))
    for stream in (False, True):
        fetch = await bench.chat(
            n=3, max_tokens=400, response_format=shape, stream=stream, logprobs=True
        ).done()
        replies = fetch.data if stream else [fetch.json]
        texts = dict.fromkeys(range(3), "")
        for choice in (choice for reply in replies for choice in reply["choices"]):
            texts[choice["index"]] += choice["delta" if stream else "message"].get("content", "")
        for text in texts.values():
            assert json.loads(text)["a"] in ("x", "y")
    await bench.baseline()


async def test_answers_without_a_seed_differ() -> None:
    reply = (await FaceBench().chat(n=4, seed=None, max_tokens=20).done()).json
    assert len({choice["message"]["content"] for choice in reply["choices"]}) == 4


async def test_a_client_that_leaves_several_answers() -> None:
    bench = FaceBench(gated=True)
    fetch = bench.chat(n=3, max_tokens=100, stream=True)
    await bench.until(lambda: len(fetch.chunks) > 4)
    fetch.drop()
    await bench.baseline()
    assert bench.runtime.stats()["requests_cancelled"] == 3


# -- Responses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top", [0, 3])
async def test_logprobs_of_a_response(top: int) -> None:
    bench = FaceBench()
    fields = {"include": INCLUDE, **({"top_logprobs": top} if top else {})}
    expected = entries(said(), top, empty=[])
    reply = (await bench.respond(**fields).done()).json
    check_response(reply)
    assert reply["top_logprobs"] == top
    assert reply["output"][0]["content"][0]["logprobs"] == expected
    socket = bench.socket()
    socket.create(**fields)
    events = await socket.until_over()
    check_sequence(socket.raw)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [each for event in deltas for each in event["logprobs"]] == expected
    assert [len(event["logprobs"]) for event in deltas] == [1] * 5
    done = next(event for event in events if event["type"] == "response.output_text.done")
    part = next(event for event in events if event["type"] == "response.content_part.done")["part"]
    assert done["logprobs"] == part["logprobs"] == expected
    assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == expected


async def test_a_response_without_them() -> None:
    bench = FaceBench()
    fetch = await bench.respond(top_logprobs=3).done()
    assert fetch.status == 400 and fetch.json["error"]["param"] == "top_logprobs"
    reply = (await bench.respond().done()).json
    assert reply["output"][0]["content"][0]["logprobs"] == [] and reply["top_logprobs"] == 0
    assert not any(plan.probes for plan in bench.engine.plans)


async def test_the_end_token_of_a_response_has_a_delta_of_its_own() -> None:
    answer = said(12)
    eos = answer[4]
    answer = answer[: answer.index(eos) + 1]
    bench = FaceBench(eos=frozenset({eos}))
    expected = entries(answer, 1, eos=eos, empty=[])
    socket = bench.socket()
    socket.create(max_output_tokens=12, include=INCLUDE, top_logprobs=1)
    events = await socket.until_over()
    check_sequence(socket.raw)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [each for event in deltas for each in event["logprobs"]] == expected
    assert "".join(event["delta"] for event in deltas) == bytes(answer[:-1]).decode()
    assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == expected


async def test_thoughts_and_calls_keep_theirs_to_themselves() -> None:
    """Only tokens of the message are told; what is held back at its beginning belongs to the thought."""
    answer = b"<think>so be it</think>\n\nYes."
    bench = FaceBench(choose=lambda tokens, seed, width: answer[len(tokens) - len(PROMPT)])
    bench.runtime.prompter = BytePrompter(reasoning="think")
    socket = bench.socket()
    socket.create(max_output_tokens=len(answer), include=INCLUDE)
    events = await socket.until_over()
    check_sequence(socket.raw)
    output = events[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["reasoning", "message"]
    part = output[1]["content"][0]
    assert (
        bytes(byte for each in part["logprobs"] for byte in each["bytes"]).decode() == part["text"] == "Yes."
    )
