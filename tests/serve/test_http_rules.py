"""The rules for all HTTP routes (protocols.md 5.1), held on the wire of a running server by every route it has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from live_server import WAIT, LiveServer
from short_answers import EOS, until_newline

from headrace.server.faces.engine_http import NOT_GENERATIVE

KEY = {"authorization": "Bearer sk-test"}
USER = [{"role": "user", "content": "hello"}]
PUBLIC = {"/", "/health", "/healthz", "/ready", "/readyz", "/ping", "/health_generate"}
# A good body for every POST route of the server; a new route needs a row.
# What generates nothing, or refuses to.
OTHERS = (
    "/flush_cache",
    "/start_profile",
    "/stop_profile",
    "/api/embed",
    "/api/embeddings",
)
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "fake", "messages": USER, "max_tokens": 5},
    "/v1/completions": {"model": "fake", "prompt": "a: b", "max_tokens": 5},
    "/v1/responses": {"model": "fake", "input": "hello", "max_output_tokens": 5},
    "/v1/responses/input_tokens": {"model": "fake", "input": "hello"},
    "/v1/responses/compact": {"model": "fake", "input": "hello"},
    "/generate": {"model": "fake", "text": "a: b", "sampling_params": {"max_new_tokens": 5}},
    "/abort_request": {"rid": "x"},
    "/tokenize": {"model": "fake", "prompt": "hello"},
    "/v1/tokenize": {"model": "fake", "prompt": "hello"},
    "/detokenize": {"model": "fake", "tokens": [97]},
    "/v1/detokenize": {"model": "fake", "tokens": [97]},
    "/v1/messages": {"model": "fake", "messages": USER, "max_tokens": 5},
    "/v1/messages/count_tokens": {"model": "fake", "messages": USER},
    "/api/chat": {"model": "fake", "messages": USER, "options": {"num_predict": 5}},
    "/api/generate": {"model": "fake", "prompt": "hello", "options": {"num_predict": 5}},
    "/api/show": {"model": "fake"},
    "/api/pull": {"model": "fake"},
}
STREAMS = {
    "/v1/chat/completions": b": ping\n\n",
    "/v1/responses": b": ping\n\n",
    "/v1/messages": b'event: ping\ndata: {"type":"ping"}\n\n',
    "/api/chat": b'"content":""}}\n',
    "/api/generate": b'"response":""}\n',
}


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    running = LiveServer(choose=until_newline, eos=EOS, keys=("sk-test",), page_count=256, sse_ping=0.05)
    yield running
    running.baseline()
    running.stop()


@pytest.fixture
def http(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers=KEY, trust_env=False, timeout=WAIT) as client:
        yield client


def routes(server: LiveServer) -> dict[str, Any]:
    port = server.app.listener._port  # type: ignore[union-attr]
    found = {path: http for path, (http, _) in port.routes._exact.items() if http is not None}
    return found | {template: http for _, template, http, _ in port.routes._patterns if http is not None}


def real(path: str) -> str:
    return path.replace("{id:path}", "fake").replace("{id}", "resp_x")


def message_of(path: str, body: Any) -> str:
    """The sentence of an error, whose shape is the one of the path's protocol."""
    if path.startswith("/api/"):
        assert set(body) == {"error"} and isinstance(body["error"], str), body
        return body["error"]
    if path.startswith("/v1/messages"):
        assert set(body) == {"type", "error", "request_id"} and body["type"] == "error", body
        assert set(body["error"]) == {"type", "message"}, body
        return body["error"]["message"]
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}, body
    assert body["error"]["code"] is None or isinstance(body["error"]["code"], str)
    return body["error"]["message"]


def test_every_post_route_has_a_body_here(server: LiveServer) -> None:
    posts = {path for path, route in routes(server).items() if "POST" in route.methods and "{" not in path}
    assert posts == set(BODIES) | set(NOT_GENERATIVE) | {*OTHERS}


def test_every_route_but_the_public_ones_asks_for_a_key_in_its_own_shape(server: LiveServer) -> None:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=WAIT) as stranger:
        for path, route in routes(server).items():
            if route.public:
                continue
            for method in route.methods:
                for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": "wrong"}):
                    reply = stranger.request(method, real(path), headers=headers)
                    assert reply.status_code == 401, (path, method)
                    assert "API key" in message_of(path, reply.json())
        for headers in (KEY, {"x-api-key": "sk-test"}):
            for path, body in BODIES.items():
                assert stranger.post(path, json=body, headers=headers).status_code == 200


def test_public_routes_are_few(server: LiveServer) -> None:
    pages = {"/app.js", "/favicon.ico"}
    public = {path for path, route in routes(server).items() if route.public}
    assert public >= PUBLIC
    assert not [path for path in public - PUBLIC if path.startswith(("/v1", "/api")) and path not in pages]


@pytest.mark.parametrize("path", BODIES)
def test_rule_1_errors_have_one_shape_whoever_finds_them(
    server: LiveServer, http: httpx.Client, path: str
) -> None:
    too_large = b"x" * (routes(server)[path].body_limit + 1)
    for reply, status in (
        (http.post(path, json={}), 400),
        (http.post(path, content=b"{"), 400),
        (http.post(path, json={**BODIES[path], "model": "gpt-9"}), 200 if path == "/abort_request" else 404),
        (http.post(path, content=too_large), 413),
        (http.get(path), 426 if path == "/v1/responses" else 405),
        (http.post(path, json=BODIES[path], headers={"content-encoding": "gzip"}), 415),
    ):
        assert reply.status_code == status, reply.text
        assert status == 200 or message_of(path, reply.json())
        assert reply.headers["x-request-id"]


def test_rule_1_later_is_better_says_how_much_later(server: LiveServer, http: httpx.Client) -> None:
    server.ask(lambda app: setattr(app.runtime, "draining", True))
    try:
        for path, body in BODIES.items():
            if path in ("/api/show", "/api/pull", "/abort_request"):
                continue  # these are answered whether or not anything may be asked
            reply = http.post(path, json=body)
            assert reply.status_code == 503, path
            assert message_of(path, reply.json())
            assert int(reply.headers["retry-after"]) >= 1 and int(reply.headers["retry-after-ms"]) >= 1
        assert int(http.get("/ready").headers["retry-after"]) >= 1
    finally:
        server.ask(lambda app: setattr(app.runtime, "draining", False))


def test_rules_2_3_4_5_7_chunks_of_a_chat(http: httpx.Client) -> None:
    asked = {**BODIES["/v1/chat/completions"], "stream": True}
    for options, extra in ((None, 0), ({"include_usage": True}, 1)):
        reply = http.post("/v1/chat/completions", json={**asked, "stream_options": options})
        blocks = reply.text.split("\n\n")
        assert blocks[-2:] == ["data: [DONE]", ""]
        assert all(block.startswith("data: ") and "\n" not in block for block in blocks[:-1])
        chunks = [json.loads(block[6:]) for block in blocks[:-2]]
        spoken = chunks[: len(chunks) - extra]
        assert "null" not in reply.text.replace('"finish_reason":null', "")
        assert all(len(chunk["choices"]) == 1 and "usage" not in chunk for chunk in spoken)
        choices = [chunk["choices"][0] for chunk in spoken]
        assert choices[0]["delta"]["role"] == "assistant" and choices[0]["delta"]["content"]
        assert all("role" not in choice["delta"] and choice["delta"]["content"] for choice in choices[1:])
        assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["length"]
        if extra:
            assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize("path", STREAMS)
def test_rule_6_a_silence_is_broken(server: LiveServer, http: httpx.Client, path: str) -> None:
    server.close_gate()
    try:
        with http.stream("POST", path, json={**BODIES[path], "stream": True}) as reply:
            pieces = reply.iter_raw()
            said = b""
            while said.count(STREAMS[path]) < 2:  # no step lands: no text can come between
                said += next(pieces)
            assert b"output_text.delta" not in said
            server.open_gate()
            rest = b"".join(pieces)
        assert reply.status_code == 200 and rest
    finally:
        server.open_gate()
    server.baseline()


@pytest.mark.parametrize("path", STREAMS)
def test_rule_8_a_client_that_goes_is_cancelled(server: LiveServer, http: httpx.Client, path: str) -> None:
    server.close_gate()
    try:
        with http.stream("POST", path, json={**BODIES[path], "stream": True}) as reply:
            next(reply.iter_raw())
        server.baseline()
    finally:
        server.open_gate()


@pytest.mark.parametrize("path", BODIES)
def test_request_ids_are_echoed_or_made(http: httpx.Client, path: str) -> None:
    for body in (BODIES[path], {}):
        made = http.post(path, json=body).headers["x-request-id"]
        assert made.startswith("req_") and made != http.post(path, json=body).headers["x-request-id"]
        given = http.post(path, json=body, headers={"x-request-id": "mine-1"})
        assert given.headers["x-request-id"] == "mine-1"
        if path.startswith("/v1/messages"):
            assert given.headers["request-id"] == "mine-1"


@pytest.mark.parametrize("path", BODIES)
def test_unknown_fields_are_named_in_a_header(http: httpx.Client, path: str) -> None:
    asked = {**BODIES[path], "zork": 1}
    for stream in (False, True) if path in STREAMS else (False,):
        reply = http.post(path, json={**asked, "stream": stream} if path in STREAMS else asked)
        assert reply.status_code == 200 and reply.headers["x-ignored-fields"] == "zork"
    refused = http.post(path, json={**BODIES[path], "x_zork": 1})
    assert refused.status_code == 400 and "x_zork" in message_of(path, refused.json())


def test_with_strict_fields_unknown_fields_are_refused() -> None:
    server = LiveServer(strict_fields=True)
    try:
        for path, body in BODIES.items():
            url = f"{server.url}{path}"
            reply = httpx.post(url, json={**body, "zork": 1}, trust_env=False, timeout=WAIT)
            assert reply.status_code == 400 and "zork" in message_of(path, reply.json())
            assert httpx.post(url, json=body, trust_env=False, timeout=WAIT).status_code == 200
    finally:
        server.stop()
