"""Tools on the Realtime socket: golden sequences, the loop, what is cut off; with openai and openai-agents too."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from face_bench import FaceBench
from face_said import prompt_of
from fake_engine import next_token
from live_server import WAIT, LiveServer
from realtime_bench import Talk
from scripted_model import END, Script, always, call
from strict_realtime import Reader

FORM = {"tools": "hermes", "reasoning": "think"}
SCHEMA = {"type": "object", "properties": {"at": {"type": "string", "maxLength": 80}}, "required": ["at"]}
WEATHER = {"type": "function", "name": "weather", "description": "what it is like", "parameters": SCHEMA}
CLOCK = {"type": "function", "name": "clock"}
ROME = call("weather", '{"at": "Rome"}')
NOW = call("clock", "{}")
KEY = "sk-test"
AGENTS = Path(sys.prefix) / "agents" / "bin" / "python"

MESSAGE = (
    "output_item.added conversation.item.added content_part.added output_text.* output_text.done "
    "content_part.done conversation.item.done output_item.done"
)
CALL = (
    "output_item.added conversation.item.added function_call_arguments.* function_call_arguments.done "
    "conversation.item.done output_item.done"
)
CUT = "output_item.added conversation.item.added function_call_arguments.* conversation.item.done output_item.done"


def bench_of(answer: str | Script, **how: Any) -> FaceBench:
    script = always(answer) if isinstance(answer, str) else answer
    return FaceBench(choose=script, eos=frozenset({END}), form=FORM, **how)


def words(talk: Talk) -> str:
    """What was said of the last response, runs of one delta as one."""
    types = talk.reader.types[
        len(talk.reader.types) - 1 - talk.reader.types[::-1].index("response.created") :
    ]
    laid: list[str] = []
    for kind in types:
        word = kind.removeprefix("response.")
        if word.endswith(".delta"):
            word = word.removesuffix("delta") + "*"
        if word not in laid[-1:] or not word.endswith("*"):
            laid.append(word)
    return " ".join(laid)


def answer_of(talk: Talk, call_id: str, output: str, **fields: Any) -> None:
    item = {"type": "function_call_output", "call_id": call_id, "output": output}
    talk.send({"type": "conversation.item.create", "item": item, **fields})


async def over(bench: FaceBench, talk: Talk) -> None:
    talk.items()
    talk.drop()
    await bench.baseline()


@pytest.mark.parametrize(
    ("answer", "sequence", "kinds"),
    [
        (ROME, CALL, ["function_call"]),
        (f"Wait.\n{ROME}\n{NOW}", f"{MESSAGE} {CALL} {CALL}", ["message", "function_call", "function_call"]),
        (f"<think>\nhm\n</think>\n\n{ROME}", CALL, ["function_call"]),
        ("<think>hm</think>Yes.", MESSAGE, ["message"]),
        (f"{ROME} Done.", f"{CALL} {MESSAGE}", ["function_call", "message"]),
        (call("unknown", "{}"), MESSAGE, ["message"]),
    ],
)
async def test_the_golden_sequences(answer: str, sequence: str, kinds: list[str]) -> None:
    bench = bench_of(answer)
    talk = Talk(bench)
    talk.update(tools=[WEATHER, CLOCK])
    talk.user("weather?")
    talk.ask(max_output_tokens="inf")
    (final,) = await talk.until_done()
    assert words(talk) == f"created {sequence} done rate_limits.updated"
    assert final["status"] == "completed"
    assert [item["type"] for item in final["output"]] == kinds
    assert {item["status"] for item in final["output"]} == {"completed"}
    for item in final["output"]:
        if item["type"] == "function_call":
            assert (item["name"], item["arguments"]) in (("weather", '{"at": "Rome"}'), ("clock", "{}"))
            assert item["call_id"].startswith("call_")
    talk.ask(conversation="none", max_output_tokens="inf")
    await talk.until_done(2)
    aside = " ".join(word for word in sequence.split() if not word.startswith("conversation"))
    assert words(talk) == f"created {aside} done rate_limits.updated", "the same out of band"
    await over(bench, talk)


async def test_tools_are_set_for_the_session_or_for_one_answer() -> None:
    bench = bench_of("ok")
    talk = Talk(bench)
    talk.update(tools=[WEATHER], parallel_tool_calls=False)
    (_, event) = talk.said_now()
    assert event["session"]["tools"] == [WEATHER] and event["session"]["parallel_tool_calls"] is False
    talk.user("weather?")
    for count, (fields, names, mode) in enumerate(
        [
            ({}, ["weather"], "auto"),
            ({"tools": [CLOCK], "parallel_tool_calls": True}, ["clock"], "auto"),
            ({"tool_choice": "none"}, ["weather"], "none"),
            ({"tools": []}, [], "auto"),
            ({"tools": [{**WEATHER, "strict": True}]}, ["weather"], "auto"),
        ]
    ):
        talk.ask(max_output_tokens="inf", **fields)
        await talk.until_done(count + 1)
        ask = bench.asks[-1]
        assert [tool.name for tool in ask.tools] == names and ask.tool_choice.mode == mode
        assert ask.tool_choice.parallel is ("parallel_tool_calls" in fields)
        assert [tool.strict for tool in ask.tools] == [count == 4] * len(names)
    assert bench.asks[0].tools[0].parameters == SCHEMA
    assert bench.asks[0].tools[0].description == "what it is like"
    talk.said_now()
    for fields in (
        {"tool_choice": "required", "tools": []},
        {"tool_choice": {"type": "function", "name": "clock"}},
        {"tool_choice": {"type": "function"}},
        {"tool_choice": "sometimes"},
    ):
        talk.ask(**fields)
        (said,) = talk.said_now()
        assert (said["error"]["code"], said["error"]["param"]) == ("invalid_value", "response.tool_choice")
    await over(bench, talk)


@pytest.mark.parametrize(
    ("choice", "names"),
    [("required", {"weather", "clock"}), ({"type": "function", "name": "clock"}, {"clock"})],
)
async def test_a_call_can_be_forced(choice: Any, names: set[str]) -> None:
    def unwilling(tokens: list[int], seed: int, width: int) -> int:
        return b'"}'[next_token(tokens, seed, 2)]

    bench = FaceBench(choose=unwilling, eos=frozenset({END}), form={"tools": "hermes"})
    talk = Talk(bench)
    talk.update(tools=[WEATHER, CLOCK], tool_choice=choice, parallel_tool_calls=False)
    (_, event) = talk.said_now()
    assert event["session"]["tool_choice"] == choice
    talk.user("weather?")
    talk.ask(max_output_tokens=900)
    (final,) = await talk.until_done()
    assert final["status"] == "completed"
    (item,) = final["output"]
    assert item["type"] == "function_call" and item["name"] in names, (
        "the model would rather say quotation marks"
    )
    assert isinstance(json.loads(item["arguments"]), dict)
    await over(bench, talk)


async def test_the_loop_of_call_and_result() -> None:
    def reply(prompt: str) -> str:
        return "It rains." if "rain in Rome" in prompt else f"Looking.\n{ROME}\n{NOW}"

    bench = bench_of(Script(reply))
    talk = Talk(bench)
    talk.update(tools=[WEATHER, CLOCK])
    talk.user("weather?")
    talk.ask(max_output_tokens="inf")
    (final,) = await talk.until_done()
    calls = [item for item in final["output"] if item["type"] == "function_call"]
    talk.said_now()
    for each, output in zip(calls, ("rain in Rome", "noon"), strict=True):
        answer_of(talk, each["call_id"], output)
        added, done = talk.said_now()
        assert added["item"]["type"] == "function_call_output" and added["item"]["status"] == "completed"
        assert done["item"] == added["item"]
    talk.ask(max_output_tokens="inf")
    final = (await talk.until_done(2))[1]
    assert final["output"][0]["content"][0]["text"] == "It rains."
    (asked,) = bench.asks[1:]
    assert asked.messages is not None
    assert [message.role for message in asked.messages] == ["user", "assistant", "tool", "tool"]
    turn = asked.messages[1]
    assert turn.content == "Looking." and [each.name for each in turn.calls] == ["weather", "clock"]
    assert [message.call_id for message in asked.messages[2:]] == [each.id for each in turn.calls]
    assert [item["type"] for item in talk.reader.items] == [
        "message", "message", "function_call", "function_call", "function_call_output", "function_call_output",
        "message",
    ]  # fmt: skip
    await over(bench, talk)


async def test_a_history_with_calls_can_be_brought_along() -> None:
    bench = bench_of("ok")
    talk = Talk(bench)
    talk.user("weather?")
    talk.send(
        {
            "type": "conversation.item.create",
            "item": {
                "type": "function_call",
                "name": "weather",
                "arguments": "{}",
                "call_id": "c1",
                "id": "f",
            },
        }
    )
    answer_of(talk, "c1", "rain")
    talk.ask(max_output_tokens="inf")
    await talk.until_done()
    assert talk.reader.errors == []
    assert "assistant:  [weather {}]\n" in prompt_of(bench) and "of c1" in prompt_of(bench)
    talk.said_now()
    answer_of(talk, "c2", "snow", event_id="lost")
    (event,) = talk.said_now()
    assert event["error"] == {
        "type": "invalid_request_error",
        "code": "invalid_value",
        "message": "No tool call found for function call output with call_id c2.",
        "param": "item.call_id",
        "event_id": "lost",
    }
    output = {"type": "function_call_output", "call_id": "c1", "output": "rain"}
    talk.ask(input=[output])
    assert talk.said_now()[0]["error"]["param"] == "response.input[0].call_id"
    talk.ask(input=[{"type": "item_reference", "id": "f"}, output], max_output_tokens="inf")
    await talk.until_done(2)
    await over(bench, talk)


@pytest.mark.parametrize("cancel", [False, True])
async def test_a_call_that_is_cut_off_is_never_run(cancel: bool) -> None:
    bench = bench_of(call("weather", json.dumps({"at": "R" * 60})), gated=True)
    talk = Talk(bench)
    talk.update(tools=[WEATHER])
    talk.user("weather?")
    talk.ask(max_output_tokens="inf" if cancel else 70)
    await talk.until(lambda: "response.function_call_arguments.delta" in talk.reader.types)
    if cancel:
        talk.send({"type": "response.cancel"})
    (final,) = await talk.until_done()
    assert final["status"] == ("cancelled" if cancel else "incomplete")
    assert words(talk) == f"created {CUT} done rate_limits.updated", "no arguments.done for half a call"
    (item,) = final["output"]
    assert item["status"] == "incomplete" and item["arguments"].startswith("{")
    talk.ask(max_output_tokens=1)
    await talk.until_done(2)
    assert "weather {" not in prompt_of(bench), "half a call is nothing to go on from"
    answer_of(talk, item["call_id"], "rain")
    talk.ask(max_output_tokens=1)
    await talk.until_done(3)
    assert "[weather {" in prompt_of(bench), "unless the client answered it all the same"
    await over(bench, talk)


async def test_a_model_without_tools_says_so() -> None:
    bench = FaceBench()
    talk = Talk(bench)
    talk.update(tools=[WEATHER])
    talk.user("weather?")
    talk.ask()
    (final,) = await talk.until_done()
    assert final["status"] == "failed"
    assert final["status_details"]["error"]["code"] == "unsupported_parameter"
    talk.ask(tools=[])
    assert (await talk.until_done(2))[1]["status"] == "incomplete"
    await over(bench, talk)


async def test_what_a_model_thinks_is_counted_and_not_told() -> None:
    bench = bench_of("<think>long thoughts</think>Yes.")
    talk = Talk(bench)
    talk.user("well?")
    talk.ask(max_output_tokens="inf")
    (final,) = await talk.until_done()
    assert final["output"][0]["content"][0]["text"] == "Yes."
    assert "thoughts" not in "".join(talk.raw)
    assert final["usage"]["output_tokens"] > len("long thoughts")
    talk.ask(max_output_tokens=9)
    final = (await talk.until_done(2))[1]
    assert final["status"] == "incomplete" and final["output"][0]["content"][0]["text"] == ""
    await over(bench, talk)


# -- the clients of others -----------------------------------------------------------------------------------------


def reply(prompt: str) -> str:
    if "rain in Rome" in prompt:
        return "It rains."
    return f"Looking.\n{ROME}" if "offers weather" in prompt else "Hello."


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    running = LiveServer(choose=Script(reply), eos=frozenset({END}), keys=(KEY,), form=FORM)
    yield running
    running.baseline()
    running.stop()


def test_openai_runs_the_loop(server: LiveServer) -> None:
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client,
        client.realtime.connect(model="fake") as connection,
    ):
        reader = Reader()

        def until(kind: str) -> Any:
            while True:
                data = connection.recv_bytes()
                reader.take(data.decode())
                event = connection.parse_event(data)
                if event.type == kind:
                    return event

        tool: Any = WEATHER
        connection.session.update(session={"type": "realtime", "tools": [tool], "tool_choice": "auto"})
        item: Any = {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "weather?"}],
        }
        connection.conversation.item.create(item=item)
        connection.response.create()
        made = until("response.function_call_arguments.done")
        assert made.name == "weather" and json.loads(made.arguments) == {"at": "Rome"}
        announced = [
            event["item"]["call_id"] for event in reader.events if "call_id" in event.get("item", {})
        ]
        assert made.call_id in announced, "pipecat runs only calls that were announced before"
        until("response.done")
        connection.conversation.item.create(
            item={"type": "function_call_output", "call_id": made.call_id, "output": "rain in Rome"}
        )
        connection.response.create()
        done = until("response.done")
        assert done.response.output[0].content[0].text == "It rains."


def test_openai_agents_talk_and_call_tools(server: LiveServer) -> None:
    script = Path(__file__).with_name("agents_realtime_run.py")
    assert AGENTS.exists(), "openai-agents is missing: .ci/agents installs it beside this interpreter"
    ran = subprocess.run(
        [AGENTS, "-P", script, server.url, KEY], capture_output=True, text=True, timeout=4 * WAIT
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    told = json.loads(ran.stdout)
    assert told["errors"] == [] and told["exceptions"] == []
    assert told["asked"] == ["Rome"]
    assert told["texts"] == ["Looking.", "It rains."]
    assert told["roles"] == ["user", "assistant", "function_call", "assistant"]
    assert told["plain"] == ["Hello.", "Hello."]
