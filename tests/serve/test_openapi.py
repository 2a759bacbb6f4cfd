"""/openapi.json: a valid document that leaves no route out and says what the types say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec.inspect as shapes
import pytest
from face_bench import FaceBench, Fetch
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from headrace.server.protocol.field_table import ENDPOINTS
from headrace.server.protocol.fields import extra_of


@pytest.fixture
async def bench() -> FaceBench:
    return FaceBench()


@pytest.fixture
async def document(bench: FaceBench) -> dict[str, Any]:
    fetch = await bench.fetch("/openapi.json").done()
    assert fetch.status == 200
    assert bench.fetch("/openapi.json").body == fetch.body, "made once"
    return fetch.json


def schema_of(document: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": document["components"]})


def operation(document: dict[str, Any], path: str, method: str = "post") -> dict[str, Any]:
    return document["paths"][path][method]


def body_schema(document: dict[str, Any], path: str) -> Draft202012Validator:
    content = operation(document, path)["requestBody"]["content"]
    return schema_of(document, content["application/json"]["schema"])


def reply_schema(
    document: dict[str, Any],
    path: str,
    kind: str = "application/json",
    status: str = "200",
    method: str = "post",
) -> Draft202012Validator:
    content = operation(document, path, method)["responses"][status]["content"]
    return schema_of(document, content[kind]["schema"])


async def test_the_document_is_valid(document: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(document).validate()
    assert document["openapi"] == "3.1.0" and document["info"]["version"] == "1.2.3"


def patterns(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("pattern"), str):
            yield node["pattern"]
        for value in node.values():
            yield from patterns(value)
    elif isinstance(node, list):
        for value in node:
            yield from patterns(value)


async def test_patterns_are_those_of_json_schema(document: dict[str, Any]) -> None:
    found = list(patterns(document))
    assert found
    for pattern in found:
        assert pattern.startswith("^") and pattern.endswith("$") and "\\A" not in pattern, pattern


async def test_no_route_is_left_out(bench: FaceBench, document: dict[str, Any]) -> None:
    expected = {
        re.sub(r":path\}", "}", path): {method.lower() for method in route.methods}
        for path, route in bench.routes.http.items()
        if path != "/"  # the chat page
    }
    for path in bench.routes.sockets:
        expected.setdefault(path, set()).add("get")
    assert {path: set(operations) for path, operations in document["paths"].items()} == expected


async def test_every_route_says_what_it_is_about(bench: FaceBench) -> None:
    """A route of the table needs a row: who reads the document learns its types there and nowhere else."""
    for path, route in bench.routes.http.items():
        if path == "/":
            continue
        assert set(route.about) == route.methods, f"{path}: server/faces/abouts.py needs a row for it"
        for method, about in route.about.items():
            assert about.summary.endswith((".", "?")), (path, method)


async def test_keys_are_asked_for_where_the_front_asks(bench: FaceBench, document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for method, described in operations.items():
            public = path in ("/health", "/healthz", "/ready", "/readyz", "/ping", "/health_generate")
            assert (described["security"] == []) is public, (path, method)


@pytest.mark.parametrize("type_", [type_ for _, type_ in ENDPOINTS])
async def test_the_treatment_of_every_field_is_told(document: dict[str, Any], type_: type) -> None:
    schema = document["components"]["schemas"].get(type_.__name__)
    if schema is None:
        assert "socket" in next(title for title, found in ENDPOINTS if found is type_)
        return
    for field in shapes.type_info(type_).fields:  # type: ignore[attr-defined]
        assert schema["properties"][field.encode_name]["x-treatment"] == extra_of(field.type)["treatment"]


MESSAGES = [{"role": "user", "content": "hi"}]
GOOD: list[tuple[str, dict[str, Any]]] = [
    (
        "/v1/chat/completions",
        {"model": "fake", "messages": MESSAGES, "max_tokens": 3, "logit_bias": {"7": -1}},
    ),
    ("/v1/completions", {"model": "fake", "prompt": ["a", "b"], "max_tokens": 3, "logprobs": 2}),
    ("/generate", {"text": "hi", "sampling_params": {"max_new_tokens": 3}, "return_logprob": True}),
    ("/generate", {"text": ["hi", "ho"], "sampling_params": {"max_new_tokens": 3}}),
    ("/abort_request", {"rid": "x"}),
    ("/v1/responses/input_tokens", {"model": "fake", "input": "hi"}),
    ("/tokenize", {"prompt": "hi", "return_token_strs": True}),
    ("/detokenize", {"tokens": [97, 98]}),
    (
        "/v1/responses",
        {"model": "fake", "input": [{"role": "user", "content": "hi"}], "max_output_tokens": 3},
    ),
    (
        "/v1/messages",
        {"model": "fake", "messages": MESSAGES, "max_tokens": 3, "thinking": {"type": "disabled"}},
    ),
    ("/v1/messages/count_tokens", {"model": "fake", "messages": MESSAGES, "system": "s"}),
    ("/api/chat", {"model": "fake", "messages": MESSAGES, "stream": False, "options": {"num_predict": 3}}),
    ("/api/generate", {"model": "fake", "prompt": "hi", "stream": False, "options": {"num_predict": 3}}),
    ("/api/show", {"model": "fake"}),
    ("/api/pull", {"model": "fake", "stream": False}),
]
BAD: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"model": "fake"}),
    ("/v1/chat/completions", {"model": "fake", "messages": MESSAGES, "logit_bias": {"seven": 1}}),
    ("/v1/chat/completions", {"model": "fake", "messages": MESSAGES, "temperature": 3}),
    ("/v1/responses", {"model": "fake", "input": 7}),
    ("/v1/messages", {"model": "fake", "messages": MESSAGES}),
    ("/v1/messages", {"model": "fake", "messages": [{"role": "robot", "content": "x"}], "max_tokens": 3}),
    ("/api/chat", {"model": "fake", "messages": MESSAGES, "options": {"num_predict": -3}}),
]


@pytest.mark.parametrize(("path", "body"), GOOD)
async def test_what_the_document_allows_is_answered_as_it_says(
    bench: FaceBench, document: dict[str, Any], path: str, body: dict[str, Any]
) -> None:
    body_schema(document, path).validate(body)
    fetch = await bench.fetch(path, body).done()
    assert fetch.status == 200, fetch.body
    reply_schema(document, path).validate(fetch.json)


@pytest.mark.parametrize(("path", "body"), BAD)
async def test_what_the_document_forbids_is_refused_as_it_says(
    bench: FaceBench, document: dict[str, Any], path: str, body: dict[str, Any]
) -> None:
    assert not body_schema(document, path).is_valid(body)
    fetch = await bench.fetch(path, body).done()
    assert fetch.status == 400
    reply_schema(document, path, status="4XX").validate(fetch.json)


STREAMED = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/generate", "/v1/messages", "/api/chat",
    "/api/generate",
)  # fmt: skip


def events(fetch: Fetch, path: str) -> list[Any]:
    if path.startswith("/api/"):
        return [json.loads(line) for line in fetch.body.splitlines()]
    lines = [line for line in fetch.body.decode().splitlines() if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


@pytest.mark.parametrize(("path", "body"), [row for row in GOOD if row[0] in STREAMED])
async def test_every_event_of_a_stream_is_one_that_the_document_knows(
    bench: FaceBench, document: dict[str, Any], path: str, body: dict[str, Any]
) -> None:
    fetch = await bench.fetch(path, {**body, "stream": True}).done()
    found = events(fetch, path)
    kind = "application/x-ndjson" if path.startswith("/api/") else "text/event-stream"
    schema = reply_schema(document, path, kind)
    assert len(found) >= 3
    for event in found:
        schema.validate(event)


@pytest.mark.parametrize("path", ["/api/tags", "/api/ps", "/api/version"])
async def test_small_replies_are_as_the_document_says(
    bench: FaceBench, document: dict[str, Any], path: str
) -> None:
    reply_schema(document, path, method="get").validate(bench.fetch(path).json)
