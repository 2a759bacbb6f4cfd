"""Rules of the Responses socket that no other test holds: the upgrade, the fields of a create, when a response is
told, what a lane goes on from, how large a message may be."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from face_bench import FaceBench, Socket
from face_said import by_lane, errors, finals, prompt_of, text
from live_server import WAIT, LiveServer
from strict_responses import check_sequence
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

KEY = "openai-insecure-api-key.sk-test"


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    running = LiveServer(keys=("sk-test",), page_count=256)
    yield running
    running.baseline()
    running.stop()


PNG = b"\x89PNG\r\n\x1a\n and the rest of it"


def opened(server: LiveServer, query: str = "", **how: Any) -> Any:
    url = server.url.replace("http", "ws", 1)
    return connect(f"{url}/v1/responses{query}", open_timeout=WAIT, proxy=None, **how)


# -- 2.1: the upgrade ------------------------------------------------------------------------------------------


def test_what_clients_send_beside_their_key_is_taken(server: LiveServer) -> None:
    headers = {
        "Authorization": "Bearer sk-test",
        "OpenAI-Beta": "responses_websockets=2026-02-06",
        "OpenAI-Organization": "org-x",
        "OpenAI-Project": "proj_x",
        "X-Request-Id": "mine",
    }
    with opened(server, "?model=fake&api-version=1&x=%20", additional_headers=headers) as socket:
        assert socket.response.headers["x-request-id"] == "mine"
        assert socket.subprotocol is None, "none was offered"
        # The address names the model; `stream` says nothing here, whatever it is.
        for stream in (True, False, None):
            asked = {"type": "response.create", "input": "x", "max_output_tokens": 2, "stream": stream}
            socket.send(json.dumps(asked))
            raws = []
            while not raws or '"response.incomplete"' not in raws[-1]:
                raws.append(socket.recv(timeout=WAIT))
            check_sequence(raws)
    with opened(server, additional_headers={**headers, "X-Request-Id": "x" * 65}) as socket:
        assert socket.response.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("offered", "selected"),
    [
        (["openai-beta.responses.v1", KEY], "openai-beta.responses.v1"),
        ([KEY, "engine.v1", "openai-beta.responses.v1"], "engine.v1"),
        (["realtime", KEY, "engine.v1"], "engine.v1"),
        ([KEY], None),
        (["realtime", KEY, "openai-beta.realtime-v1"], None),
    ],
)
def test_a_browser_brings_its_key_among_the_subprotocols(
    server: LiveServer, offered: list[str], selected: str | None
) -> None:
    if selected is None:
        with pytest.raises(InvalidStatus) as refused, opened(server, subprotocols=offered):
            pass
        assert refused.value.response.status_code == 400
        assert b"sk-test" not in refused.value.response.body
    else:
        with opened(server, subprotocols=offered) as socket:
            assert socket.subprotocol == selected


@pytest.mark.parametrize(
    ("query", "headers", "status", "code"),
    [
        ("", {}, 401, None),
        ("", {"Authorization": "Bearer wrong"}, 401, None),
        ("?access_token=sk-test", {}, 401, None),
        ("?model=gpt-9", {"Authorization": "Bearer sk-test"}, 404, "model_not_found"),
        ("", {"Authorization": "Bearer sk-test", "Origin": "https://elsewhere.example"}, 403, None),
    ],
)
def test_a_refusal_comes_before_the_upgrade(
    server: LiveServer, query: str, headers: dict[str, str], status: int, code: str | None
) -> None:
    with pytest.raises(InvalidStatus) as refused, opened(server, query, additional_headers=headers):
        pass
    response = refused.value.response
    assert response.status_code == status
    error = json.loads(response.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert code is None or error["code"] == code
    assert response.headers["x-request-id"]


@pytest.mark.parametrize("message", [b'{"type":"response.create"}', PNG])
def test_a_binary_message_closes_a_stock_connection_with_1003(server: LiveServer, message: bytes) -> None:
    with opened(server, additional_headers={"Authorization": "Bearer sk-test"}) as socket:
        socket.send(message)
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=WAIT)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1003


@pytest.mark.parametrize(("query", "protocol"), [("?ext=1", None), ("", "engine.v1")])
def test_a_picture_comes_as_a_binary_message_where_extensions_are_asked_for(
    server: LiveServer, query: str, protocol: str | None
) -> None:
    key = {"Authorization": "Bearer sk-test"}
    protocols = None if protocol is None else [protocol]
    with opened(server, query, additional_headers=key, subprotocols=protocols) as socket:
        socket.send(PNG)
        told = json.loads(socket.recv(timeout=WAIT))
        assert (told["type"], told["bytes"]) == ("x.image", len(PNG))
        socket.send(b"\x00\x01")
        assert json.loads(socket.recv(timeout=WAIT))["error"]["code"] == "invalid_json"


# -- 3.1: the fields of a create -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"conversation": "conv_1"}, "conversation"),
        ({"conversation": {"id": "conv_1"}, "previous_response_id": "resp_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"background": True}, "background"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
            "input[0].content[0]",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].file_id",
        ),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
    ],
)
async def test_what_is_not_offered_is_named(fields: dict[str, Any], param: str) -> None:
    bench = FaceBench()
    socket = bench.socket()
    socket.create(**fields)
    await socket.until_over()
    (frame,) = errors(socket)
    assert frame["status"] == 400
    assert (frame["error"]["code"], frame["error"]["param"]) == ("unsupported_parameter", param)
    assert not bench.asks


HARMLESS: dict[str, Any] = {
    "max_tool_calls": 3,
    "context_management": [{"type": "compaction", "compact_threshold": 1000}],
    "user": "u",
    "safety_identifier": "s",
    "moderation": {"input": True},
    "access_programs": ["x"],
    "image": {"context_compression": "auto"},
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "prompt_cache_options": {"mode": "implicit", "ttl": "30m"},
    "stream_options": {"include_usage": True, "include_obfuscation": False},
    "text": {"verbosity": "low", "format": {"type": "text"}},
    "include": ["reasoning.encrypted_content", "web_search_call.action.sources"],
    "reasoning": {"effort": "minimal", "summary": "auto"},
    "tools": [
        {"type": "web_search"},
        {"type": "mcp", "server_label": "x"},
        {"type": "namespace", "name": "n"},
    ],
    "stop": None,
    "ignore_eos": True,
    "temperature": None,
    "top_logprobs": None,
    "service_tier": "ultrafast",
    "zork": {"of": "no type of ours"},
}


@pytest.mark.parametrize("name", HARMLESS)
async def test_what_changes_no_answer_is_taken(name: str) -> None:
    bench = FaceBench()
    plain, socket = bench.socket(), bench.socket()
    plain.create("x", seed=5)
    socket.create("x", seed=5, **{name: HARMLESS[name]})
    for each in (plain, socket):
        await each.until_over()
        check_sequence(each.raw)
    (said,) = finals(socket)
    assert text(said) == text(finals(plain)[0])
    for echo in ("prompt_cache_options", "prompt_cache_retention", "user", "zork"):
        assert echo not in said
    if name == "service_tier":
        assert said["service_tier"] == "ultrafast", "the tier in use"
    if name == "tools":
        assert said["tools"] == []


# -- 3.3: when a response is told ------------------------------------------------------------------------------


async def test_a_response_is_told_before_its_prompt_is_computed() -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket()
    socket.create("x")
    # One that waits behind it in its lane does not exist yet; one in another lane does.
    socket.create("y")
    socket.create("z", stream_id="b")
    for _ in range(100):  # turns of the loop, in which no step lands
        bench.flush()
        await asyncio.sleep(0)
    begun = ["response.created", "response.in_progress"]
    for lane in (None, "b"):
        assert [json.loads(raw)["type"] for raw in by_lane(socket, lane)] == begun
    assert bench.engine.held, "the prompt waits for its step"
    socket.drop()
    await bench.baseline()


# -- 3.7: what a lane goes on from -----------------------------------------------------------------------------


async def said(socket: Socket, input: Any, **fields: Any) -> dict[str, Any]:
    count = len(finals(socket))
    socket.create(input, **fields)
    await socket.until(lambda: len(finals(socket)) > count)
    return finals(socket)[-1]


async def test_a_lane_without_an_id_begins_afresh_and_nothing_is_taken_for_a_repeat() -> None:
    bench = FaceBench()
    socket = bench.socket()
    first = await said(socket, "one", stream_id="a")
    await said(socket, "two", stream_id="a")
    assert prompt_of(bench) == "user: two\nassistant: ", "the lane's name is no chain"
    history = [{"role": "user", "content": "one"}, *first["output"], {"role": "user", "content": "two"}]
    await said(socket, history, stream_id="a", previous_response_id=first["id"])
    answer = text(first)
    assert prompt_of(bench) == f"user: one\nassistant: {answer}\n" * 2 + "user: two\nassistant: "


async def test_a_cancelled_response_goes_on_with_what_it_said() -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket()
    socket.create("one", max_output_tokens=50)
    await socket.until(lambda: "response.output_text.delta" in socket.types())
    socket.send({"type": "response.cancel"})
    await socket.until_over()
    (cut,) = finals(socket)
    assert (cut["status"], cut["incomplete_details"]) == ("cancelled", None)
    assert cut["usage"]["output_tokens"] >= len(text(cut)) > 0
    socket.create("two", previous_response_id=cut["id"])
    await socket.until(lambda: len(bench.prompts) == 2)
    assert prompt_of(bench) == f"user: one\nassistant: {text(cut)}\nuser: two\nassistant: "


# -- 2.2: how large a message may be ---------------------------------------------------------------------------


async def test_what_a_client_sends_is_not_sent_back_in_every_message() -> None:
    """Some clients read no message above 1 MiB."""
    bench = FaceBench()
    socket = bench.socket()
    long = "x" * (200 << 10)
    picture = "data:image/png;base64," + base64.b64encode(b"\x89PNG" + bytes(900 << 10)).decode()
    socket.create(
        [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}],
        instructions="i" * 3000,
        tools=[{"type": "web_search", "note": long}],
        metadata={f"k{index:02}" + "k" * 61: "v" * 512 for index in range(16)},
        text={"format": {"type": "text"}, "verbosity": "low"},
    )
    await socket.until_over()
    socket.create([{"role": "user", "content": long}], instructions=long)  # more than fits: an error
    socket.create([{"role": "user", "content": [{"type": "input_image", "image_url": picture}]}])
    await socket.until_over(3)
    assert len(errors(socket)) == 2
    assert max(map(len, socket.raw)) < 64 << 10
