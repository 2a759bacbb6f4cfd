"""The unmodified `openai` package for Node against the running server: ResponsesWS, responses and chat on HTTP."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_prompter import letters
from live_server import WAIT, LiveServer
from strict_responses import check_event, check_response, check_sequence

from headrace.server.websocket import SocketConnection

HERE = Path(__file__).parent
END = 10  # newline ends an answer
SENTENCE = b"It is a long story. "


def story(tokens: list[int], seed: int, width: int) -> int:
    """The same sentence for ever, if asked for a story; else letters, and a newline after 12 to 27 of them."""
    start = bytes(tokens).rindex(b"assistant: ") + 11
    said = len(tokens) - start
    if bytes(tokens[:start]).rpartition(b"user: ")[2].startswith(b"story"):
        return SENTENCE[said % len(SENTENCE)]
    return END if said >= 12 + seed % 16 else letters(tokens, seed, width)


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    running = LiveServer(choose=story, eos=frozenset({END}), keys=("sk-test",), page_count=256)
    yield running
    running.open_gate()
    running.baseline()
    running.stop()


def close_sockets(server: LiveServer) -> None:
    def close(app: Any) -> None:
        for connection in app.listener._port.connections:
            if isinstance(connection, SocketConnection):
                connection.close(1012, "test")

    server.ask(close)


def play(server: LiveServer, flow: str) -> dict[str, Any]:
    """The result of one flow; what it asks for is done on the way."""
    assert (HERE / "node_modules" / "openai").is_dir(), "sh .ci/node installs what these tests need"
    process = subprocess.Popen(
        ["node", "flows.mjs", flow, f"{server.url}/v1", "sk-test"],
        cwd=HERE,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    result: dict[str, Any] | None = None
    watchdog = threading.Timer(WAIT, process.kill)
    watchdog.start()
    try:
        for line in process.stdout:
            said = json.loads(line)
            if "result" in said:
                result = said["result"]
                break
            match said["ask"]:
                case "hold":
                    server.close_gate()
                case "land":
                    server.until(lambda app: app.loop.live)
                    server.land(6)
                case "release":
                    server.open_gate()
                case "close":
                    close_sockets(server)
                case other:
                    raise AssertionError(other)
            process.stdin.write("\n")
            process.stdin.flush()
    finally:
        watchdog.cancel()
        if result is None:
            process.kill()
        process.stdin.close()
        process.stdout.close()
        status = process.wait()
    assert result is not None and status == 0, "the flow ended early: see its stderr above"
    return result


def sequences(events: list[dict[str, Any]], *lanes: str | None) -> list[list[dict[str, Any]]]:
    """The responses of one lane each (or all that follow one another), checked strictly."""
    told = []
    for lane in lanes:
        mine = [json.dumps(event) for event in events if event.get("stream_id") == lane]
        starts = [i for i, raw in enumerate(mine) if '"response.created"' in raw[:40]]
        for start, stop in zip(starts, [*starts[1:], len(mine)], strict=True):
            told.append(check_sequence(mine[start:stop]))
    return told


def text(response: dict[str, Any]) -> str:
    return "".join(part["text"] for item in response["output"] for part in item["content"])


def test_a_conversation_and_an_error(server: LiveServer) -> None:
    told = play(server, "conversation")
    first, second = sequences(told["events"], None)
    assert first[-1]["type"] == second[-1]["type"] == "response.completed"
    assert told["second"]["previous_response_id"] == told["first"]["id"]
    transcript = f"user: one\nassistant: {text(told['first'])}\nuser: two\nassistant: "
    assert told["second"]["usage"]["input_tokens"] == len(transcript)
    (error,) = told["errors"]
    assert error["status"] == 400 and error["error"]["code"] == "previous_response_not_found"
    assert told["closes"] == [1000]


def test_the_event_iterator(server: LiveServer) -> None:
    told = play(server, "iterated")
    assert told["text"] and told["text"] == text(told["final"])


def test_warm_up(server: LiveServer) -> None:
    told = play(server, "warm_up")
    check_response(told["warm"])
    assert told["warm"]["output"] == [] and told["warm"]["usage"]["output_tokens"] == 0
    assert told["final"]["usage"]["input_tokens_details"]["cached_tokens"] >= 128
    assert text(told["final"])


def test_lanes(server: LiveServer) -> None:
    told = play(server, "lanes")["events"]
    assert [run[-1]["response"]["status"] for run in sequences(told, "a", "b")] == ["incomplete"] * 2
    order = [event["stream_id"] for event in told if event["type"] == "response.output_text.delta"]
    assert order.index("b") < len(order) - 1 - order[::-1].index("a"), "both were running at once"


def test_steer(server: LiveServer) -> None:
    events = play(server, "steer")["events"]
    failed = check_event(json.dumps(events.pop()))
    assert failed["error"]["code"] == "response_already_completed" and failed["steer"]["input"] == "Too late."
    cut, after = (run[-1]["response"] for run in sequences(events, "a"))
    assert cut["incomplete_details"] == {"reason": "steered"} and text(cut).endswith("story.")
    assert after["previous_response_id"] == cut["id"] and after["status"] == "completed"
    transcript = f"user: story\nassistant: {text(cut)}\nuser: Be quick.\nassistant: "
    assert after["usage"]["input_tokens"] == len(transcript)


def test_cancel(server: LiveServer) -> None:
    ((*_, end),) = sequences(play(server, "cancel")["events"], None)
    assert end["response"]["status"] == "cancelled" and text(end["response"])
    server.baseline()


def test_it_comes_back_after_1012(server: LiveServer) -> None:
    told = play(server, "reconnect")
    assert told["seen"] == [1012]
    assert told["second"]["previous_response_id"] == told["first"]["id"]


def test_responses_over_http(server: LiveServer) -> None:
    told = play(server, "http")
    assert told["whole"] | {"output_text": ""} == told["read"] | {"output_text": ""}
    check_sequence([json.dumps(event) for event in told["events"]])
    assert told["again"] == told["events"][3:]
    assert (told["queued"]["status"], told["cancelled"]["status"]) == ("queued", "cancelled")
    assert [item["content"][0]["text"] for item in told["items"]] == ["hello"]
    assert told["gone"] == {"status": 404, "code": "response_not_found"}


def test_chat(server: LiveServer) -> None:
    told = play(server, "chat")
    whole = told["whole"]["choices"][0]["message"]["content"]
    assert whole and told["final"]["choices"][0]["message"]["content"] == whole
    assert told["chunks"][-1]["choices"] == [] and told["chunks"][-1]["usage"] == told["whole"]["usage"]
    deltas = [chunk["choices"][0]["delta"] for chunk in told["chunks"][:-1]]
    assert deltas[0]["role"] == "assistant" and deltas[0]["content"]
    assert "".join(delta.get("content", "") for delta in deltas) == whole
    assert told["wrong"] == {
        "status": 404,
        "code": "model_not_found",
        "param": "model",
        "name": "NotFoundError",
    }
