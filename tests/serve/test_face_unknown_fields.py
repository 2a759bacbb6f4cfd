"""A field that nobody knows, in every object of a rich request to every endpoint: named or refused, never lost."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from face_bench import FaceBench

SCHEMA = {"type": "object"}
USER = {"role": "user", "content": "hi"}
TEXT = {"type": "text", "text": "a"}
FUNCTION = {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "fake", "max_tokens": 3, "tools": [FUNCTION], "tool_choice": "auto",
        "response_format": {"type": "text"},
        "stream_options": {"include_usage": True}, "chat_template_kwargs": {"thinking": True},
        "messages": [
            {"role": "user", "content": [TEXT]}, {"role": "assistant", "content": "x", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c", "content": "r"},
        ],
    },
    "/v1/completions": {"model": "fake", "prompt": "a", "max_tokens": 3, "stream_options": {"include_usage": True}},
    "/v1/responses": {
        "model": "fake", "max_output_tokens": 3, "reasoning": {"effort": "low"},
        "text": {"format": {"type": "text"}},
        "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}],
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}],
    },
    "/generate": {"text": "a", "sampling_params": {"max_new_tokens": 3}},
    "/tokenize": {"messages": [USER]},
    "/detokenize": {"tokens": [97]},
    "/abort_request": {"rid": "x"},
    "/v1/messages": {
        "model": "fake", "max_tokens": 3, "system": [TEXT], "thinking": {"type": "adaptive"},
        "tools": [{"name": "f", "input_schema": SCHEMA}], "tool_choice": {"type": "auto"},
        "output_config": {"effort": "low"},
        "messages": [
            {"role": "user", "content": [TEXT]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "r"}]},
        ],
    },
    "/v1/messages/count_tokens": {"model": "fake", "messages": [USER]},
    "/api/chat": {
        "model": "fake", "stream": False, "options": {"num_predict": 3}, "tools": [FUNCTION],
        "messages": [
            USER,
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
            {"role": "tool", "tool_name": "f", "content": "r"},
        ],
    },
    "/api/generate": {"model": "fake", "stream": False, "prompt": "a", "options": {"num_predict": 3}},
    "/api/show": {"model": "fake"},
    "/api/pull": {"model": "fake", "stream": False},
}  # fmt: skip
# What stands below these is the client's own: schemas, and the arguments of calls.
FREE = {"parameters", "input_schema", "arguments"}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the objects of a body stand."""
    if isinstance(value, dict):
        yield path
        for name, inner in value.items():
            if name not in FREE and not (name == "input" and isinstance(inner, dict)):
                yield from places(inner, (*path, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*path, index))


@pytest.mark.parametrize("path", BODIES)
async def test_an_unknown_field_is_named_wherever_it_stands(path: str) -> None:
    bench = FaceBench(form={"tools": "hermes"})
    for place in places(BODIES[path]):
        body = copy.deepcopy(BODIES[path])
        inner: Any = body
        for step in place:
            inner = inner[step]
        inner["zork"] = 1
        fetch = await bench.fetch(path, body).done()
        if fetch.status == 200:
            named = fetch.headers.get("x-ignored-fields", "")
            assert named.endswith("zork"), (place, named)
        else:
            assert fetch.status == 400 and b"zork" in fetch.body, (place, fetch.body)
    await bench.baseline()
