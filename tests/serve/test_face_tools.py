"""Tools and reasoning on the Responses and chat faces: golden sequences, whole answers, history, and mistakes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from face_bench import FaceBench, Fetch
from face_said import prompt_of
from scripted_model import END, Script, always, call
from strict_responses import check_error_frame, check_event, check_response, check_sequence, shape

from headrace.runtime.interface import TextInput
from headrace.server.faces.tool_items import opened, sealed

FORM = {"tools": "hermes", "reasoning": "think"}
SCHEMA = {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}
WEATHER = {"type": "function", "name": "weather", "description": "what it is like", "parameters": SCHEMA}
CLOCK = {"type": "function", "name": "clock", "parameters": None, "strict": None}
PATCH = {"type": "custom", "name": "patch", "description": "changes a file"}
CHAT_TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "clock"}},
]
ROME = call("weather", '{"at": "Rome"}')
NOW = call("clock", "{}")


def bench_of(script: Script | str, **how: Any) -> FaceBench:
    script = always(script) if isinstance(script, str) else script
    return FaceBench(choose=script, eos=frozenset({END}), form=FORM, **how)


async def spoken(bench: FaceBench, **fields: Any) -> list[dict[str, Any]]:
    """The events of one response over a socket, strictly checked, and equal to those over SSE."""
    fields = {"max_output_tokens": 500, "tools": [WEATHER, CLOCK, PATCH], **fields}
    socket = bench.socket()
    socket.create(**fields)
    await socket.until_over()
    events = check_sequence(socket.raw)
    fetch = await bench.respond(stream=True, **fields).done()
    assert [event["type"] for event in fetch.data] == [event["type"] for event in events]
    for event in fetch.data:
        check_event(json.dumps(event))
    whole = await bench.respond(**fields).done()
    check_response(whole.json)
    assert [without_ids(item) for item in whole.json["output"]] == [
        without_ids(item) for item in events[-1]["response"]["output"]
    ]
    return events


def without_ids(item: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key not in ("id", "call_id")}


def words(events: list[dict[str, Any]]) -> str:
    """The sequence as words, runs of one delta as one."""
    laid: list[str] = []
    for event in events:
        word = event["type"].removeprefix("response.")
        if word.endswith(".delta"):
            word = word.removesuffix("delta") + "*"
        if word not in laid[-1:] or not word.endswith("*"):
            laid.append(word)
    return " ".join(laid)


MESSAGE = (
    "output_item.added content_part.added output_text.* output_text.done content_part.done output_item.done"
)
THOUGHT = "output_item.added reasoning_text.* reasoning_text.done output_item.done"
CALL = "output_item.added function_call_arguments.* function_call_arguments.done output_item.done"
CUSTOM = "output_item.added custom_tool_call_input.* custom_tool_call_input.done output_item.done"
CUT = "output_item.added function_call_arguments.* output_item.done"


@pytest.mark.parametrize(
    ("answer", "sequence", "kinds"),
    [
        (ROME, CALL, ["function_call"]),
        (f"Wait.\n{ROME}\n{NOW}", f"{MESSAGE} {CALL} {CALL}", ["message", "function_call", "function_call"]),
        (f"<think>\nhm\n</think>\n\n{ROME}", f"{THOUGHT} {CALL}", ["reasoning", "function_call"]),
        ("<think>hm</think>Yes.", f"{THOUGHT} {MESSAGE}", ["reasoning", "message"]),
        (f"{ROME} Done.", f"{CALL} {MESSAGE}", ["function_call", "message"]),
        (call("patch", '{"input": "a\\nb"}'), CUSTOM, ["custom_tool_call"]),
        (call("unknown", "{}"), MESSAGE, ["message"]),
    ],
)
async def test_the_golden_sequences(answer: str, sequence: str, kinds: list[str]) -> None:
    events = await spoken(bench_of(answer))
    assert words(events) == f"created in_progress {sequence} completed"
    final = events[-1]["response"]
    assert [item["type"] for item in final["output"]] == kinds
    assert {item["status"] for item in final["output"]} == {"completed"}
    for item in final["output"]:
        match item["type"]:
            case "function_call":
                assert (item["name"], item["arguments"]) in (("weather", '{"at": "Rome"}'), ("clock", "{}"))
            case "custom_tool_call":
                assert (item["name"], item["input"]) == ("patch", "a\nb")
            case "reasoning":
                assert item["content"] == [{"type": "reasoning_text", "text": "hm"}]


async def test_tools_and_choice_are_echoed() -> None:
    bench = bench_of("ok")
    hosted = {"type": "web_search"}
    for choice in (
        "auto",
        "none",
        {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "clock"}]},
    ):
        fetch = await bench.respond(tools=[hosted, WEATHER, CLOCK, PATCH], tool_choice=choice).done()
        check_response(fetch.json)
        assert fetch.json["tool_choice"] == choice
        assert fetch.json["tools"] == [{**WEATHER, "strict": None}, CLOCK, PATCH]
    grammar = {**PATCH, "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "a"'}}
    fetch = await bench.respond(tools=[grammar]).done()
    check_response(fetch.json)
    assert fetch.json["tools"] == [grammar]
    assert "lark" in (bench.asks[-1].tools[0].description or "")
    long = {**WEATHER, "description": "x" * 70_000}
    fetch = await bench.respond(tools=[long, PATCH]).done()
    check_response(fetch.json)
    assert [tool["name"] for tool in fetch.json["tools"]] == ["weather", "patch"]
    assert len(fetch.body) < 5000, "what every event would repeat stays small"


async def test_a_choice_narrows_what_counts_as_a_call() -> None:
    bench = bench_of(ROME)
    only = {
        "type": "allowed_tools",
        "mode": "auto",
        "tools": [{"type": "function", "name": "clock"}, {"type": "mcp"}],
    }
    for choice in ("none", only):
        fetch = await bench.respond(tools=[WEATHER, CLOCK], tool_choice=choice, max_output_tokens=500).done()
        assert [item["type"] for item in fetch.json["output"]] == ["message"]
        assert fetch.json["output"][0]["content"][0]["text"] == ROME
    assert "offers weather" in prompt_of(bench), "the model sees them all, so cached prompts stay valid"


async def test_an_answer_with_one_call_at_most_ends_with_it() -> None:
    bench = bench_of(f"{ROME}\n{NOW}")
    events = await spoken(bench, parallel_tool_calls=False)
    assert words(events) == f"created in_progress {CALL} completed"
    usage = events[-1]["response"]["usage"]
    assert usage["output_tokens"] < len(ROME), "what follows the call was not generated"
    chat = await bench.chat(tools=CHAT_TOOLS, parallel_tool_calls=False, max_tokens=500).done()
    assert len(chat.json["choices"][0]["message"]["tool_calls"]) == 1
    await bench.baseline()


@pytest.mark.parametrize("cut", [len("<tool_call>") + 5, len(ROME) - 20, len(ROME) - 14])
async def test_an_unfinished_call_has_no_done(cut: int) -> None:
    bench = bench_of(ROME)
    events = await spoken(bench, max_output_tokens=cut)
    final = events[-1]["response"]
    (item,) = final["output"]
    assert (final["status"], item["status"]) == ("incomplete", "incomplete")
    if item["type"] == "function_call":
        assert words(events) == f"created in_progress {CUT} incomplete"
        assert '{"at": "Rome"}'.startswith(item["arguments"])
    else:
        assert item["content"][0]["text"] == ROME[:cut], "nobody knew yet that this was a call"


async def test_a_cancelled_call_is_closed_as_incomplete_and_forgotten() -> None:
    bench = bench_of(f"Well.{ROME}", gated=True)
    socket = bench.socket()
    socket.create(tools=[WEATHER], max_output_tokens=500)
    await socket.until(lambda: "response.function_call_arguments.delta" in socket.types())
    socket.send({"type": "response.cancel"})
    await socket.until_over()
    events = check_sequence(socket.raw)
    assert words(events) == f"created in_progress {MESSAGE} {CUT} incomplete"
    socket.create("go on", previous_response_id=events[-1]["response"]["id"], tools=[WEATHER])
    await socket.until(lambda: len(bench.prompts) == 2)
    assert "assistant: Well.\nuser: go on" in prompt_of(bench)


async def test_a_call_that_breaks_is_told_and_the_rest_is_text() -> None:
    events = await spoken(bench_of('<tool_call>{"name": "weather", "arguments": {"at": !}}</tool_call>'))
    assert words(events) == f"created in_progress {CUT} {MESSAGE} completed"
    assert [item["status"] for item in events[-1]["response"]["output"]] == ["incomplete", "completed"]
    assert events[-1]["response"]["output"][1]["content"][0]["text"] == "!}}</tool_call>"


async def test_reasoning_tokens_are_counted() -> None:
    answer = "<think>hm, hm</think>Yes."
    bench = bench_of(answer)
    fetch = await bench.respond(max_output_tokens=500).done()
    usage = fetch.json["usage"]
    assert usage["output_tokens"] == len(answer) + 1
    # From the token that completes the first mark to the one that completes the second.
    assert usage["output_tokens_details"]["reasoning_tokens"] == len(">hm, hm</think>")
    chat = await bench.chat(max_tokens=500).done()
    assert chat.json["usage"]["completion_tokens_details"]["reasoning_tokens"] == len(">hm, hm</think>")


# -- history ---------------------------------------------------------------------------------------------------


def turns(prompt: str) -> list[str]:
    return [line for line in prompt.splitlines() if not line.startswith("offers ")]


async def test_the_tool_loop_by_id_over_both_transports() -> None:
    def reply(prompt: str) -> str:
        return "It rains." if "tool of call_" in prompt else f"<think>hm</think>Wait.{ROME}"

    bench = bench_of(Script(reply))
    socket = bench.socket()
    fields: dict[str, Any] = {"tools": [WEATHER], "max_output_tokens": 500}
    socket.create("weather?", **fields)
    await socket.until_over()
    first = socket.said[-1]["response"]
    called = first["output"][-1]["call_id"]
    output = {
        "type": "function_call_output",
        "call_id": called,
        "output": [{"type": "input_text", "text": "rain"}],
    }
    socket.create([output], previous_response_id=first["id"], **fields)
    await socket.until_over(2)
    assert socket.said[-1]["response"]["output"][0]["content"][0]["text"] == "It rains."
    assert turns(prompt_of(bench)) == [
        "user: weather?",
        'assistant: Wait. [weather {"at": "Rome"}]',
        f"tool of {called}: rain",
        "assistant: ",
    ]
    assert bench.asks[-1].messages is not None and bench.asks[-1].messages[1].reasoning == "hm"
    http = await bench.respond("weather?", **fields).done()
    called = http.json["output"][-1]["call_id"]
    output = {"type": "function_call_output", "call_id": called, "output": "rain"}
    http = await bench.respond([output], previous_response_id=http.json["id"], **fields).done()
    assert http.json["output"][0]["content"][0]["text"] == "It rains."
    await bench.baseline()


async def test_items_sent_back_become_one_turn() -> None:
    """What stock clients do without ids: the output items of the last response, then what came of them."""
    bench = bench_of("ok")
    history = [
        {"role": "user", "content": "weather?"},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "hm"}],
        },
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Wait."}]},
        {"type": "function_call", "call_id": "call_a", "name": "weather", "arguments": "{}", "id": "fc_1"},
        {"type": "custom_tool_call", "call_id": "call_b", "name": "patch", "input": "a\nb"},
        {"type": "function_call_output", "call_id": "call_a", "output": "rain"},
        {"type": "custom_tool_call_output", "call_id": "call_b", "output": "done"},
        {"type": "reasoning", "id": "rs_2", "summary": [], "encrypted_content": sealed("so")},
        {"type": "function_call", "call_id": "call_c", "name": "clock", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_c", "output": "noon"},
        {"type": "reasoning", "id": "rs_3", "summary": [{"type": "summary_text", "text": "left out"}]},
    ]
    await bench.respond(history, tools=[WEATHER]).done()
    assert turns(prompt_of(bench)) == [
        "user: weather?",
        'assistant: Wait. [weather {}] [patch {"input": "a\\nb"}]',
        "tool of call_a: rain",
        "tool of call_b: done",
        "assistant:  [clock {}]",
        "tool of call_c: noon",
        "assistant: ",
    ]
    messages = bench.asks[-1].messages or ()
    assert [message.reasoning for message in messages] == ["", "hm", "", "", "so", ""]


async def test_reasoning_can_be_carried_by_the_client() -> None:
    bench = bench_of("<think>hm 🎉</think>Yes.")
    fetch = await bench.respond(
        include=["reasoning.encrypted_content"], store=False, max_output_tokens=500
    ).done()
    check_response(fetch.json)
    blob = fetch.json["output"][0]["encrypted_content"]
    assert opened(blob) == "hm 🎉"
    assert opened("gAAAA-made-elsewhere") == opened("hr1.!") == opened("hr1.gA==") == ""
    fetch = await bench.respond([{"role": "user", "content": "a"}, *fetch.json["output"]]).done()
    assert bench.asks[-1].messages is not None and bench.asks[-1].messages[1].reasoning == "hm 🎉"


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("function_call_output", "function call output"),
        ("custom_tool_call_output", "custom tool call output"),
    ],
)
async def test_an_output_without_its_call_is_named(kind: str, what: str) -> None:
    bench = bench_of("ok")
    item = {"type": kind, "call_id": "call_9", "output": "x"}
    socket = bench.socket()
    socket.create([item], tools=[WEATHER])
    await socket.until_over()
    (raw,) = socket.raw
    error = check_error_frame(raw)["error"]
    assert error["message"] == f"No tool call found for {what} with call_id call_9."
    assert (error["code"], error["param"]) == ("invalid_value", "input")
    assert bench.respond([item]).error == error
    assert not bench.asks


# -- chat ------------------------------------------------------------------------------------------------------


def assembled(fetch: Fetch) -> tuple[dict[str, Any], str]:
    """The message that the chunks of a stream add up to, and its finish reason; every chunk is checked."""
    message: dict[str, Any] = {"role": None, "content": None}
    calls: list[dict[str, Any]] = []
    reasons = []
    for place, chunk in enumerate(fetch.data):
        (choice,) = chunk["choices"]
        delta = choice["delta"]
        assert ("role" in delta) == (place == 0)
        message["role"] = delta.get("role", message["role"])
        for name in ("content", "reasoning_content", "reasoning"):
            if name in delta:
                message[name] = (message.get(name) or "") + delta[name]
        for fragment in delta.get("tool_calls", ()):
            if fragment["index"] == len(calls):
                assert set(fragment) == {"index", "id", "type", "function"} and fragment["id"].startswith(
                    "call_"
                )
                assert set(fragment["function"]) == {"name", "arguments"}
                calls.append({key: fragment[key] for key in ("id", "function", "type")})
            else:
                assert fragment["index"] == len(calls) - 1 and set(fragment) == {"index", "function"}
                calls[-1]["function"]["arguments"] += fragment["function"]["arguments"]
        reasons.append(choice["finish_reason"])
    assert all(reason is None for reason in reasons[:-1])
    return {**message, **({"tool_calls": calls} if calls else {})}, reasons[-1]


@pytest.mark.parametrize(
    ("answer", "content", "thought", "calls", "reason"),
    [
        (ROME, None, None, ["weather"], "tool_calls"),
        (f"<think>hm</think>Wait.\n{ROME}\n{NOW}", "Wait.", "hm", ["weather", "clock"], "tool_calls"),
        ("<think>hm</think>Yes.", "Yes.", "hm", [], "stop"),
        ("Yes.", "Yes.", None, [], "stop"),
        ("", "", None, [], "stop"),
        (ROME[:-20], None, None, ["weather"], "stop"),
        (call("unknown", "{}"), call("unknown", "{}"), None, [], "stop"),
    ],
)
async def test_chat_whole_and_streamed(
    answer: str, content: str | None, thought: str | None, calls: list[str], reason: str
) -> None:
    bench = bench_of(answer)
    fields: dict[str, Any] = {"tools": CHAT_TOOLS, "max_tokens": 500}
    (choice,) = (await bench.chat(**fields).done()).json["choices"]
    message = choice["message"]
    assert message["content"] == content
    assert message.get("reasoning_content") == thought
    assert [each["function"]["name"] for each in message.get("tool_calls", ())] == calls
    assert choice["finish_reason"] == reason
    streamed, streamed_reason = assembled(await bench.chat(stream=True, **fields).done())
    assert streamed_reason == reason
    for each in (*message.get("tool_calls", ()), *streamed.get("tool_calls", ())):
        del each["id"]
    assert streamed == message
    counted = await bench.chat(stream=True, stream_options={"continuous_usage_stats": True}, **fields).done()
    assert all("usage" in chunk for chunk in counted.data)


async def test_the_reasoning_field_may_be_renamed() -> None:
    bench = bench_of("<think>hm</think>Yes.", settings={"reasoning_field": "reasoning"})
    message = (await bench.chat(max_tokens=500).done()).json["choices"][0]["message"]
    assert (message["reasoning"], "reasoning_content" in message) == ("hm", False)
    streamed, _ = assembled(await bench.chat(stream=True, max_tokens=500).done())
    assert (streamed["reasoning"], "reasoning_content" in streamed) == ("hm", False)


async def test_a_length_stop_inside_of_a_call() -> None:
    bench = bench_of(ROME)
    fetch = await bench.chat(stream=True, tools=CHAT_TOOLS, max_tokens=len(ROME) - 20).done()
    message, reason = assembled(fetch)
    assert reason == "length"
    assert '{"at": "Rome"}'.startswith(message["tool_calls"][0]["function"]["arguments"])


async def test_calls_and_results_in_the_history() -> None:
    bench = bench_of("ok")
    function = {"name": "weather", "arguments": "{}"}
    messages = [
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "hm",
            "tool_calls": [{"id": "call_a", "type": "function", "function": function, "index": 0}],
        },
        {"role": "tool", "tool_call_id": "call_a", "content": [{"type": "text", "text": "rain"}]},
    ]
    fetch = await bench.fetch(
        "/v1/chat/completions", {"model": "fake", "messages": messages, "max_tokens": 5}
    ).done()
    assert fetch.status == 200
    assert turns(prompt_of(bench)) == [
        "user: weather?", "assistant:  [weather {}]", "tool of call_a: rain", "assistant: ",
    ]  # fmt: skip
    assert bench.asks[-1].messages is not None and bench.asks[-1].messages[1].reasoning == "hm"


# -- mistakes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"tools": [{"type": "function"}]}, "missing_required_parameter", "tools[0].name"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "invalid_value", "tools[0].name"),
        ({"tools": [{"type": "function", "name": 3}]}, "invalid_value", "tools[0].name"),
        ({"tools": [{**CLOCK, "parameters": [1]}]}, "invalid_value", "tools[0].parameters"),
        ({"tools": [{**CLOCK, "parameters": {"type": "string"}}]}, "invalid_value", "tools[0].parameters"),
        ({"tools": [CLOCK, CLOCK]}, "invalid_value", "tools[1].name"),
        ({"tools": [{"type": "zork"}]}, "invalid_value", "tools[0].type"),
        ({"tools": [{**PATCH, "format": {"type": "zork"}}]}, "invalid_value", "tools[0].format.type"),
        (
            {"tools": [{**PATCH, "format": {"type": "grammar", "syntax": "lark"}}]},
            "missing_required_parameter",
            "tools[0].format.definition",
        ),
        ({"tools": [{**CLOCK, "description": "x" * 300_000}]}, "invalid_value", "tools[0].description"),
        ({"tools": [{**CLOCK, "name": n, "description": "x" * 200_000} for n in "ab"]}, "invalid_value", "tools"),
        ({"tools": [CLOCK], "tool_choice": "zork"}, "invalid_value", "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": {"type": "function", "name": "zork"}}, "invalid_value", "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": {"type": "custom", "name": "clock"}}, "invalid_value", "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": {"type": "allowed_tools"}}, "invalid_value", "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": {"type": "web_search"}}, "unsupported_parameter", "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": 3}, "invalid_value", "tool_choice"),
    ],
)  # fmt: skip
async def test_wrong_tools_on_the_responses_face(fields: dict[str, Any], code: str, param: str) -> None:
    bench = bench_of("ok")
    fetch = bench.respond(**fields)
    assert (fetch.status, fetch.error["code"], fetch.error["param"]) == (400, code, param)
    socket = bench.socket()
    socket.create(**fields)
    await socket.until_over()
    assert check_error_frame(socket.raw[0])["error"] == fetch.error
    assert not bench.asks


CHAT_CLOCK = {"type": "function", "function": {"name": "clock"}}


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"tools": [{"type": "function"}]}, "missing_required_parameter", "tools[0].function"),
        ({"tools": [{"type": "function", "function": {}}]}, "missing_required_parameter", "tools[0].function.name"),
        ({"tools": [{"type": "zork"}]}, "invalid_value", "tools[0].type"),
        ({"tools": [{"type": "custom", "custom": {"name": "a"}}]}, "unsupported_parameter", "tools[0].type"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": 3}}]},
            "invalid_value",
            "tools[0].function.parameters",
        ),
        ({"tools": [CHAT_CLOCK] * 2}, "invalid_value", "tools[1].name"),
        ({"tools": [CHAT_CLOCK] * 513}, "invalid_value", "tools"),
        (
            {"tools": [CHAT_CLOCK], "tool_choice": {"type": "function", "function": {"name": "zork"}}},
            "invalid_value",
            "tool_choice",
        ),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "missing_required_parameter",
            "messages[0].tool_call_id",
        ),
        (
            {"messages": [{"role": "tool", "content": "x", "tool_call_id": "a"}]},
            "invalid_value",
            "messages[0].tool_call_id",
        ),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "b", "arguments": "{}"}}]}]},
            "invalid_value",
            "messages[0].tool_calls",
        ),
    ],
)  # fmt: skip
async def test_wrong_tools_on_the_chat_face(fields: dict[str, Any], code: str, param: str) -> None:
    bench = bench_of("ok")
    fetch = bench.chat(**fields)
    assert (fetch.status, fetch.error["code"], fetch.error["param"]) == (400, code, param)
    assert not bench.asks


@pytest.mark.parametrize("face", ["chat", "respond"])
async def test_deep_schemas_are_refused(face: str) -> None:
    bench = bench_of("ok")
    deep: Any = {}
    for _ in range(40):
        deep = {"properties": {"a": deep}}
    function = {"name": "f", "parameters": {"type": "object", **deep}}
    tool = {"type": "function", "function": function} if face == "chat" else {"type": "function", **function}
    fetch = getattr(bench, face)(tools=[tool])
    assert (fetch.status, fetch.error["code"]) == (400, "invalid_value")
    assert "nested deeper" in fetch.error["message"]


# -- the text of custom tools ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ('{"input": "a\\nb \\"c\\" \\u00e9 \\ud83c\\udf89 🎉"}', 'a\nb "c" é 🎉 🎉'),
        ('{ "input" :"" }', ""),
        ('{"other": 1}', '{"other": 1}'),
        ('{"input": 3}', '{"input": 3}'),
        ('{"input": "a\\ud83c b"}', "a? b"),
        ("{}", "{}"),
    ],
)
def test_text_is_decoded_while_it_arrives(written: str, text: str) -> None:
    for step in (1, 2, 5, 100):
        reader = TextInput()
        told = [reader.push(written[at : at + step]) for at in range(0, len(written), step)]
        told.append(reader.finish())
        assert "".join(told) == reader.text == text
    assert "".join(told[:-1]) == text or step == 100


def test_a_cut_text_is_what_was_certain() -> None:
    reader = TextInput()
    assert [reader.push('{"input": "ab\\'), reader.push("u00"), reader.finish()] == ["ab", "", ""]
    assert shape([]) == ""
