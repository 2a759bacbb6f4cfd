"""JSON on demand and forced calls on chat and Responses: what is enforced, what is echoed, what is refused."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from face_bench import FaceBench
from fake_engine import next_token
from jsonschema import validate
from scripted_model import END, always, call
from strict_responses import check_error_frame, check_response, check_sequence

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"at": {"type": "string", "maxLength": 8}, "kind": {"enum": ["rain", "sun"]}},
    "required": ["at", "kind"],
    "additionalProperties": False,
}
CHAT = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}
RESPONSES = {"type": "json_schema", "name": "place", "schema": SCHEMA, "strict": True}
FUNCTION = {"type": "function", "name": "weather", "parameters": SCHEMA}
CHAT_TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "clock"}},
]
TOOLS = [FUNCTION, {"type": "function", "name": "clock"}, {"type": "custom", "name": "note"}]


def unwilling(tokens: list[int], seed: int, width: int) -> int:
    """A model that would only ever say quotation marks and braces: whatever else it says, it was made to."""
    return b'"}'[next_token(tokens, seed, 2)]


def bench_of(choose: Any = unwilling, **form: str) -> FaceBench:
    return FaceBench(choose=choose, eos=frozenset({END}), form=form or {"tools": "hermes"})


@pytest.mark.parametrize("thought", ["", "<think>hm</think>"])
async def test_an_answer_by_schema_on_both_faces(thought: str) -> None:
    bench = bench_of(always(thought + '{"at": "Rome", "kind": "rain"} or so'), reasoning="think")
    chat = await bench.chat(response_format=CHAT, max_tokens=400).done()
    (choice,) = chat.json["choices"]
    validate(json.loads(choice["message"]["content"]), SCHEMA)
    assert choice["finish_reason"] == "stop"
    assert choice["message"].get("reasoning_content") == ("hm" if thought else None)
    streamed = await bench.chat(response_format=CHAT, max_tokens=400, stream=True).done()
    told = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in streamed.data)
    assert told == choice["message"]["content"]
    whole = await bench.respond(text={"format": RESPONSES}, max_output_tokens=400).done()
    check_response(whole.json)
    assert whole.json["text"] == {"format": RESPONSES}
    assert whole.json["output"][-1]["content"][0]["text"] == told
    socket = bench.socket()
    socket.create(text={"format": RESPONSES}, max_output_tokens=400)
    await socket.until_over()
    check_sequence(socket.raw)
    await bench.baseline()


async def test_an_unwilling_model_follows_the_schema() -> None:
    bench = bench_of(reasoning="")
    for seed in range(5):
        chat = await bench.chat(response_format=CHAT, max_tokens=900, seed=seed).done()
        (choice,) = chat.json["choices"]
        assert choice["finish_reason"] == "stop"
        validate(json.loads(choice["message"]["content"]), SCHEMA)


async def test_any_object_on_both_faces() -> None:
    bench = bench_of(always('{"a": [1, true, "x"]} and so on'))
    chat = await bench.chat(response_format={"type": "json_object"}, max_tokens=400).done()
    assert json.loads(chat.json["choices"][0]["message"]["content"]) == {"a": [1, True, "x"]}
    whole = await bench.respond(text={"format": {"type": "json_object"}}, max_output_tokens=400).done()
    check_response(whole.json)
    assert whole.json["text"] == {"format": {"type": "json_object"}}
    assert json.loads(whole.json["output"][0]["content"][0]["text"]) == {"a": [1, True, "x"]}


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"weather", "clock", "note"}),
        ({"type": "function", "name": "weather"}, {"weather"}),
        ({"type": "custom", "name": "note"}, {"note"}),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "clock"}]},
            {"clock"},
        ),
    ],
)
async def test_a_forced_call_on_the_responses_face(choice: Any, names: set[str]) -> None:
    bench = bench_of()
    socket = bench.socket()
    socket.create(tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, max_output_tokens=900)
    await socket.until_over()
    final = check_sequence(socket.raw)[-1]["response"]
    assert final["status"] == "completed" and final["tool_choice"] == choice
    (item,) = final["output"]
    assert item["type"] in ("function_call", "custom_tool_call") and item["name"] in names
    if item["name"] == "weather":
        validate(json.loads(item["arguments"]), SCHEMA)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
async def test_a_forced_call_on_the_chat_face(choice: Any) -> None:
    bench = bench_of()
    fields = {"tools": CHAT_TOOLS, "tool_choice": choice, "parallel_tool_calls": False, "max_tokens": 900}
    (told,) = (await bench.chat(**fields).done()).json["choices"]
    assert (told["finish_reason"], told["message"]["content"]) == ("tool_calls", None)
    (call,) = told["message"]["tool_calls"]
    assert isinstance(json.loads(call["function"]["arguments"]), dict)
    if choice != "required":
        validate(json.loads(call["function"]["arguments"]), SCHEMA)


@pytest.mark.parametrize(
    ("form", "code", "param"),
    [
        ({"type": "json_schema"}, "missing_required_parameter", "response_format.json_schema"),
        (
            {"type": "json_schema", "json_schema": {"schema": SCHEMA}},
            "missing_required_parameter",
            "response_format.json_schema.name",
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "a"}},
            "missing_required_parameter",
            "response_format.json_schema.schema",
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "schema": [1]}},
            "invalid_value",
            "response_format.json_schema.schema",
        ),
        ({"type": "json_schema", "json_schema": 3}, "invalid_value", "response_format.json_schema"),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "zork"}}},
            "invalid_value",
            "response_format",
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {"type": "string"}}}},
            "invalid_value",
            "response_format",
        ),
        ({"type": "zork"}, "invalid_value", "response_format.type"),
    ],
)
async def test_wrong_formats(form: Any, code: str, param: str) -> None:
    bench = bench_of()
    fetch = await bench.chat(response_format=form).done()
    assert (fetch.status, fetch.error["code"], fetch.error["param"]) == (400, code, param)
    inner = form.get("json_schema")
    if isinstance(inner, dict) or form["type"] == "zork":
        flat = {"type": form["type"], **(inner or {})}
        socket = bench.socket()
        socket.create(text={"format": flat})
        await socket.until_over()
        error = check_error_frame(socket.raw[0])["error"]
        expected = param.replace("response_format.json_schema", "text.format").replace(
            "response_format", "text.format"
        )
        assert (error["code"], error["param"]) == (code, expected)
    await bench.baseline()


async def test_a_call_is_not_forced_where_there_is_no_tool() -> None:
    bench = bench_of()
    for fetch in (bench.respond(tool_choice="required"), bench.chat(tool_choice="required")):
        done = await fetch.done()
        assert (done.status, done.error["code"], done.error["param"]) == (400, "invalid_value", "tool_choice")


PATCH = {"type": "custom", "name": "patch", "description": "changes a file"}
FORM = {"type": "grammar", "syntax": "regex", "definition": '[a-c]{2}\n"[xyz]'}


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "custom", "name": "patch"}])
@pytest.mark.parametrize("syntax", ["regex", "lark"])
async def test_the_text_of_a_custom_tool_follows_its_grammar(choice: Any, syntax: str) -> None:
    """A model that would write something else writes what is nearest to it."""
    definition = (
        FORM["definition"] if syntax == "regex" else 'start: /[a-c]{2}/ LF /["][xyz]/\n%import common.LF'
    )
    tool = {**PATCH, "format": {**FORM, "syntax": syntax, "definition": definition}}
    wanted = call("patch", '{"input": "zz\\n\\"a"}')
    bench = FaceBench(choose=always(wanted), eos=frozenset({END}), form={"tools": "hermes"})
    for fields in ({}, {"stream": True}):
        fetch = await bench.respond(tools=[tool], tool_choice=choice, max_output_tokens=900, **fields).done()
        said = fetch.data[-1]["response"] if fields else fetch.json
        check_response(said)
        (item,) = said["output"]
        assert (item["type"], item["name"], item["input"]) == ("custom_tool_call", "patch", 'aa\n"x')
        assert said["tools"] == [tool]
    socket = bench.socket()
    socket.create(tools=[tool], tool_choice=choice, max_output_tokens=900)
    await socket.until_over()
    events = check_sequence(socket.raw)
    assert "".join(e["delta"] for e in events if e["type"].endswith("_input.delta")) == 'aa\n"x'
    free = FaceBench(choose=always("Just words."), eos=frozenset({END}), form={"tools": "hermes"})
    told = (await free.respond(tools=[tool], max_output_tokens=900).done()).json
    assert told["output"][0]["content"][0]["text"] == "Just words.", "auto leaves the choice to the model"
    await bench.baseline()


@pytest.mark.parametrize("choice", ["auto", "required"])
async def test_a_wrong_grammar_of_a_tool_is_that_requests_error(choice: str) -> None:
    bench = bench_of()
    wrong = {**PATCH, "format": {"type": "grammar", "syntax": "lark", "definition": "start: nothing"}}
    fetch = await bench.respond(tools=[*TOOLS[:1], wrong], tool_choice=choice).done()
    assert (fetch.status, fetch.error["code"], fetch.error["param"]) == (
        400,
        "invalid_value",
        "tools[1].format.definition",
    )
    assert "invalid grammar" in fetch.error["message"]
    socket = bench.socket()
    socket.create(tools=[*TOOLS[:1], wrong], tool_choice=choice)
    await socket.until_over()
    assert check_error_frame(socket.raw[0])["error"] == fetch.error
    for form in ({**FORM, "syntax": "ebnf"}, {"type": "grammar", "syntax": "lark"}, {"type": "zork"}, 3):
        fetch = await bench.respond(tools=[{**PATCH, "format": form}]).done()
        assert fetch.status == 400 and fetch.error["param"].startswith("tools[0].format")
    counted = {"model": "fake", "input": "x", "tools": [wrong]}
    fetch = await bench.fetch("/v1/responses/input_tokens", counted).done()
    assert fetch.error["param"] == "tools[0].format.definition"
    await bench.baseline()


async def test_where_the_engine_cannot_guide_it_says_so() -> None:
    bench = bench_of()
    bench.engine.masks = False
    for fields, param in (({"text": {"format": RESPONSES}}, "text.format"),):
        fetch = await bench.respond(**fields).done()
        assert (fetch.status, fetch.error["code"], fetch.error["param"]) == (
            400,
            "unsupported_parameter",
            param,
        )
    fetch = await bench.chat(tools=CHAT_TOOLS, tool_choice="required").done()
    assert (fetch.error["code"], fetch.error["param"]) == ("unsupported_parameter", "tool_choice")
    assert (await bench.chat(tools=CHAT_TOOLS, max_tokens=100).done()).status == 200
    await bench.baseline()


# -- regular expressions, and the plain faces ----------------------------------------------------------------------

DATE = "[0-9]{4}-(0[1-9]|1[0-2])"


async def test_a_regex_on_every_face() -> None:
    bench = bench_of()
    chat = await bench.chat(regex=DATE, max_tokens=100, n=2).done()
    told = [choice["message"]["content"] for choice in chat.json["choices"]]
    whole = await bench.respond(regex=DATE, max_output_tokens=100).done()
    told.append(whole.json["output"][0]["content"][0]["text"])
    plain = {"model": "fake", "prompt": "assistant: ", "max_tokens": 100, "seed": 1}
    completion = await bench.fetch("/v1/completions", {**plain, "regex": DATE}).done()
    told.append(completion.json["choices"][0]["text"])
    body = {"text": "assistant: ", "sampling_params": {"regex": DATE, "max_new_tokens": 100}}
    told.append((await bench.fetch("/generate", body).done()).json["text"])
    for text in told:
        assert re.fullmatch(DATE, text), told


async def test_a_schema_as_text_on_generate() -> None:
    bench = bench_of()
    sampling = {"json_schema": json.dumps(SCHEMA), "max_new_tokens": 900, "n": 2}
    fetch = await bench.fetch("/generate", {"text": "assistant: ", "sampling_params": sampling}).done()
    assert len(fetch.json) == 2
    for each in fetch.json:
        validate(json.loads(each["text"]), SCHEMA)


@pytest.mark.parametrize("regex", ["(?=a)b", "(a", "(a)\\1", "a" * 4097])
async def test_wrong_regexes(regex: str) -> None:
    bench = bench_of()
    for fetch in (bench.chat(regex=regex), bench.respond(regex=regex)):
        done = await fetch.done()
        assert (done.status, done.error["code"], done.error["param"]) == (400, "invalid_value", "regex")
    body = {"text": "a", "sampling_params": {"regex": regex}}
    done = await bench.fetch("/generate", body).done()
    assert (done.status, done.error["param"]) == (400, "sampling_params.regex")
    await bench.baseline()


async def test_one_shape_at_a_time() -> None:
    bench = bench_of()
    for fetch in (
        bench.chat(regex="a", response_format=CHAT),
        bench.respond(regex="a", text={"format": RESPONSES}),
    ):
        assert (fetch.error["code"], fetch.error["param"]) == ("invalid_value", "regex")
    for schema in ("[", "3", "{}"):
        sampling = {"json_schema": schema, **({"regex": "a"} if schema == "{}" else {})}
        fetch = bench.fetch("/generate", {"text": "a", "sampling_params": sampling})
        assert fetch.error["param"] in ("sampling_params.json_schema", None)
        assert fetch.status == 400
    assert not bench.asks


async def test_several_guided_answers_share_nothing() -> None:
    bench = bench_of()
    chat = await bench.chat(response_format=CHAT, n=3, max_tokens=900).done()
    texts = [choice["message"]["content"] for choice in chat.json["choices"]]
    for text in texts:
        validate(json.loads(text), SCHEMA)
    assert len(set(texts)) > 1
    await bench.baseline()
