"""A last message of the assistant's is continued, on every face that takes one; the answer holds what is new."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from face_bench import FaceBench, Fetch
from face_said import prompt_of
from fake_engine import likely, replay
from fake_prompter import CARD, letters
from strict_messages import check_error, check_events, check_message

from headrace.runtime.request import SamplingParams

CHAT, ANTHROPIC, OLLAMA, TOKENIZE = "/v1/chat/completions", "/v1/messages", "/api/chat", "/tokenize"
FACES = (CHAT, ANTHROPIC, OLLAMA)
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def turn(role: str, content: Any = "", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def ask(
    bench: FaceBench, path: str, *texts: str | dict[str, Any], stream: bool = False, **fields: Any
) -> Fetch:
    """The texts as turns of user and assistant, in the fields of each face; `stop` is spelled as the face wants."""
    messages = [
        text if isinstance(text, dict) else turn(("user", "assistant")[at % 2], text)
        for at, text in enumerate(texts)
    ]
    stop = fields.pop("stop", None)
    body: dict[str, Any] = {"model": "fake", "messages": messages, "stream": stream}
    if path == CHAT:
        body |= {"max_tokens": 5, "seed": 1, "continue_final_message": True, "stop": stop}
    elif path == ANTHROPIC:
        body |= {"max_tokens": 5, "seed": 1} | ({} if stop is None else {"stop_sequences": [stop]})
    else:
        body["options"] = {"num_predict": 5, "seed": 1} | ({} if stop is None else {"stop": [stop]})
    return bench.fetch(path, {**body, **fields})


def said(fetch: Fetch, path: str) -> str:
    assert fetch.status == 200, fetch.body
    if path == CHAT:
        assert fetch.json["choices"][0]["message"]["role"] == "assistant"
        return fetch.json["choices"][0]["message"]["content"]
    if path == ANTHROPIC:
        return "".join(block["text"] for block in check_message(fetch.json)["content"])
    return fetch.json["message"]["content"]


def new(prompt: str, count: int = 5) -> str:
    return bytes(replay(list(prompt.encode()), count, SamplingParams(seed=1), 256, letters)).decode()


@pytest.mark.parametrize("path", FACES)
async def test_the_answer_goes_on_where_the_message_ends(path: str) -> None:
    bench = FaceBench()
    fetch = await ask(bench, path, "why?", "Becau").done()
    assert prompt_of(bench) == "user: why?\nassistant: Becau"
    assert said(fetch, path) == new("user: why?\nassistant: Becau"), (
        "and holds nothing of what was there before"
    )
    await bench.baseline()


async def test_streams_hold_what_is_new_too() -> None:
    bench = FaceBench()
    expected = new("user: why?\nassistant: Becau")
    chunks = (await ask(bench, CHAT, "why?", "Becau", stream=True).done()).data
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == expected
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    message = check_events((await ask(bench, ANTHROPIC, "why?", "Becau", stream=True).done()).body)
    assert [block["text"] for block in message["content"]] == [expected]
    lines = (await ask(bench, OLLAMA, "why?", "Becau", stream=True).done()).body.decode().splitlines()
    assert "".join(json.loads(line)["message"]["content"] for line in lines) == expected
    await bench.baseline()


@pytest.mark.parametrize("path", FACES)
async def test_an_answer_that_was_cut_goes_on_as_if_it_had_not_been(path: str) -> None:
    """And finds the pages of its first part again."""
    bench = FaceBench(page_size=4)
    question = "why is the sky blue?"
    # Anthropic takes no white space at the end of what is continued.
    begun = "Well" if path == ANTHROPIC else "Well "
    begun += said(await ask(bench, path, question, begun).done(), path)
    begun = begun.rstrip() if path == ANTHROPIC else begun
    before = bench.scheduler.counters.prefill_tokens_computed
    second = said(await ask(bench, path, question, begun).done(), path)
    assert bench.scheduler.counters.prefill_tokens_computed - before < 8, "all but the last page was there"
    assert second == new(f"user: {question}\nassistant: {begun}")
    await bench.baseline()


@pytest.mark.parametrize("path", FACES)
async def test_a_stop_string_is_found_in_what_is_new_alone(path: str) -> None:
    bench = FaceBench()
    expected = new("user: why?\nassistant: Becau")
    over_the_seam = await ask(bench, path, "why?", "Becau", stop="u" + expected[0]).done()
    assert said(over_the_seam, path) == expected, "it began before the answer did"
    within = await ask(bench, path, "why?", "Becau", stop=expected[2:4]).done()
    assert said(within, path) == expected[:2]
    await bench.baseline()


async def test_logprobs_are_those_of_what_is_new() -> None:
    bench = FaceBench()
    prompt = b"user: why?\nassistant: Becau"
    answer = replay(list(prompt), 5, SamplingParams(seed=1), 256, letters)
    chosen = [dict(likely([*prompt, *answer[:at]], 256))[token] for at, token in enumerate(answer)]
    chat = (await ask(bench, CHAT, "why?", "Becau", logprobs=True, top_logprobs=2).done()).json
    assert [entry["logprob"] for entry in chat["choices"][0]["logprobs"]["content"]] == chosen
    ollama = (await ask(bench, OLLAMA, "why?", "Becau", logprobs=True).done()).json
    assert [entry["logprob"] for entry in ollama["logprobs"]] == chosen
    await bench.baseline()


async def test_several_answers_go_on_with_one_message() -> None:
    bench = FaceBench()
    choices = (await ask(bench, CHAT, "why?", "Becau", n=3).done()).json["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2] and len(bench.prompts) == 3
    assert choices[0]["message"]["content"] == new("user: why?\nassistant: Becau")
    await bench.baseline()


@pytest.mark.parametrize("path", FACES)
async def test_pictures_may_stand_before_it(path: str) -> None:
    bench = FaceBench(card=replace(CARD, sees=True))
    data = "YSBwaWN0dXJl"
    url = f"data:image/png;base64,{data}"
    shown: dict[str, dict[str, Any]] = {
        CHAT: turn(
            "user", [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what?"}]
        ),
        ANTHROPIC: turn(
            "user",
            [
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}},
                {"type": "text", "text": "what?"},
            ],
        ),
        OLLAMA: turn("user", "what?", images=[data]),
    }
    fetch = await ask(bench, path, shown[path], "A h").done()
    expected = f"user: [whole picture of {len(url)}]what?\nassistant: A h"
    assert prompt_of(bench) == expected and said(fetch, path) == new(expected)
    await bench.baseline()


@pytest.mark.parametrize("path", FACES)
async def test_an_empty_last_turn_is_a_beginning(path: str) -> None:
    bench = FaceBench()
    await ask(bench, path, "why?", "").done()
    assert prompt_of(bench) == "user: why?\nassistant: "
    await bench.baseline()


@pytest.mark.parametrize("path", FACES)
async def test_tools_may_be_called_behind_it_but_not_demanded(path: str) -> None:
    bench = FaceBench(form={"tools": "hermes"})
    tool: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    forced: Any = "required"
    if path == ANTHROPIC:
        tool, forced = {"name": "f", "input_schema": {"type": "object"}}, {"type": "any"}
    assert (await ask(bench, path, "why?", "Becau", tools=[tool]).done()).status == 200
    assert prompt_of(bench) == "offers f\nuser: why?\nassistant: Becau"
    if path != OLLAMA:
        fetch = ask(bench, path, "why?", "Becau", tools=[tool], tool_choice=forced)
        assert fetch.status == 400 and b"tool_choice" in fetch.body
    call = {**CALL, "function": {"name": "f", "arguments": {}}} if path == OLLAMA else CALL
    called = turn("assistant", "x", tool_calls=[call])
    if path == ANTHROPIC:
        called = turn("assistant", [{"type": "tool_use", "id": "c", "name": "f", "input": {}}])
    fetch = ask(bench, path, "why?", called)
    assert fetch.status == 400 and b"which cannot be continued" in fetch.body
    await bench.baseline()


# -- what one face asks for alone --------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["Becau ", "Becau\n", [{"type": "text", "text": "Becau\t"}]])
@pytest.mark.parametrize("path", [ANTHROPIC, "/v1/messages/count_tokens"])
def test_anthropic_takes_no_white_space_at_the_end(text: Any, path: str) -> None:
    bench = FaceBench()
    body = {"model": "fake", "messages": [turn("user", "why?"), turn("assistant", text)]}
    fetch = bench.fetch(path, {**body, "max_tokens": 5} if path == ANTHROPIC else body)
    assert fetch.status == 400
    said = check_error(fetch.json, "invalid_request_error")
    assert said == "messages: final assistant content cannot end with trailing whitespace"


async def test_anthropic_counts_what_is_continued() -> None:
    bench = FaceBench()
    body = {"model": "fake", "messages": [turn("user", "why?"), turn("assistant", "Becau")]}
    fetch = await bench.fetch("/v1/messages/count_tokens", body).done()
    assert fetch.json == {"input_tokens": len("user: why?\nassistant: Becau")}


async def test_anthropic_s_thinking_comes_before_the_text() -> None:
    bench = FaceBench()
    thinking = {"type": "enabled", "budget_tokens": 1024}
    fetch = ask(bench, ANTHROPIC, "why?", "Becau", thinking=thinking)
    assert fetch.status == 400 and check_error(fetch.json, "invalid_request_error").startswith("thinking: ")
    blocks = [{"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "text", "text": "Becau"}]
    for fields in ({"thinking": thinking}, {"thinking": {"type": "adaptive"}}, {}):
        fetch = await ask(bench, ANTHROPIC, "why?", turn("assistant", blocks), **fields).done()
        assert fetch.status == 200 and prompt_of(bench) == "user: why?\nassistant: Becau"
    assert bench.asks[-1].messages is not None and bench.asks[-1].messages[-1].reasoning == "hm"
    await bench.baseline()


def test_anthropic_s_formats_begin_with_the_answer() -> None:
    bench = FaceBench()
    form = {"format": {"type": "json_schema", "schema": {"type": "object"}}}
    fetch = ask(bench, ANTHROPIC, "why?", "{", output_config=form)
    assert fetch.status == 400 and "output_config.format" in check_error(fetch.json, "invalid_request_error")


async def test_a_shape_elsewhere_is_that_of_what_is_new() -> None:
    bench = FaceBench(eos=frozenset({10}))
    fetch = await ask(bench, CHAT, "why?", "It is ", regex="yes|no").done()
    assert said(fetch, CHAT) in ("yes", "no") and prompt_of(bench).endswith("It is ")
    fetch = await ask(bench, OLLAMA, "why?", "Here: ", format={"const": 7}).done()
    assert said(fetch, OLLAMA) == "7"
    await bench.baseline()


async def test_a_chat_says_how_its_prompt_ends() -> None:
    bench = FaceBench()
    why = turn("user", "why?")
    both = [why, turn("assistant", "a")]
    for path in (CHAT, TOKENIZE):
        base: dict[str, Any] = {"model": "fake"} | ({"max_tokens": 5} if path == CHAT else {})
        for fields, messages, expected in (
            ({"add_generation_prompt": False}, [why], "user: why?\n"),
            ({"add_generation_prompt": True}, [why], "user: why?\nassistant: "),
            ({"continue_final_message": False}, both, "user: why?\nassistant: a\nassistant: "),
            (
                {"continue_final_message": True, "add_generation_prompt": False},
                both,
                "user: why?\nassistant: a",
            ),
        ):
            fetch = await bench.fetch(path, {**base, "messages": messages, **fields}).done()
            assert fetch.status == 200, fetch.body
            ids = bench.prompts[-1] if path == CHAT else fetch.json["tokens"]
            assert bytes(ids).decode() == expected
        for fields, messages in (
            ({"continue_final_message": True, "add_generation_prompt": True}, both),
            ({"continue_final_message": True}, [why]),
        ):
            fetch = bench.fetch(path, {**base, "messages": messages, **fields})
            assert (fetch.status, fetch.error["code"]) == (400, "invalid_value")
            assert fetch.error["param"] == "continue_final_message"
    for fields in ({"continue_final_message": True}, {"add_generation_prompt": False}):
        fetch = bench.fetch(TOKENIZE, {"prompt": "a", **fields})
        assert (fetch.status, fetch.error["param"]) == (400, *fields)
    await bench.baseline()


async def test_a_raw_prompt_of_ollama_s_is_continued_as_it_is() -> None:
    bench = FaceBench()
    body = {
        "model": "fake",
        "prompt": "Becau",
        "raw": True,
        "stream": False,
        "options": {"num_predict": 5, "seed": 1},
    }
    fetch = await bench.fetch("/api/generate", body).done()
    assert prompt_of(bench) == "Becau" and fetch.json["response"] == new("Becau")
    await bench.baseline()
