"""Bad requests by the thousand to the routes of prompts and tokens: one well-formed answer each, and nothing else
moves."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import msgspec
import msgspec.inspect as shapes
import pytest
from bad_values import FREE, NUMBERS, TEXTS, kinds, mutate
from face_bench import FaceBench, Fetch

from headrace.server.protocol.completions import CompletionRequest
from headrace.server.protocol.generate import AbortRequest, GenerateRequest, SamplingFields
from headrace.server.protocol.tokenizing import DetokenizeRequest, TokenizeRequest

# path, type, a good body, and where in it the fields of the type stand
ROUTES: dict[str, tuple[str, type[msgspec.Struct], dict[str, Any], str]] = {
    "completions": ("/v1/completions", CompletionRequest, {"model": "fake", "prompt": "x", "max_tokens": 1}, ""),
    "generate": ("/generate", GenerateRequest, {"text": "x", "sampling_params": {"max_new_tokens": 1}}, ""),
    "sampling": (
        "/generate", SamplingFields, {"text": "x", "sampling_params": {"max_new_tokens": 1}}, "sampling_params",
    ),
    "abort": ("/abort_request", AbortRequest, {"rid": "x"}, ""),
    "tokenize": ("/tokenize", TokenizeRequest, {"prompt": "x"}, ""),
    "detokenize": ("/detokenize", DetokenizeRequest, {"tokens": [97]}, ""),
}  # fmt: skip


def raw_body(base: dict[str, Any], at: str, field: str, value: str) -> bytes:
    """A good request with one field set to this JSON text."""
    outer = json.dumps({**base, at: "@"} if at else base)
    inner = base[at] if at else base
    rest = {key: each for key, each in inner.items() if key != field}
    comma = ", " if rest else ""
    spelled = json.dumps(rest)[:-1] + f'{comma}"{field}": {value}}}'
    whole = outer.replace('"@"', spelled) if at else spelled
    return whole.encode("utf-8", "surrogatepass")


def check(fetch: Fetch, where: Any) -> None:
    """200, or exactly one 4xx of the OpenAI shape without our insides."""
    assert fetch.over, where
    if fetch.status == 200:
        return
    assert 400 <= fetch.status < 500, (where, fetch.body)
    error = fetch.error
    assert error["type"] == "invalid_request_error" and isinstance(error["code"], str), where
    assert error["message"] and len(error["message"]) <= 600, where
    assert not re.search(r"0x[0-9a-f]{6}|Traceback|\.py\b|object at", error["message"]), error
    assert error["param"] is None or len(error["param"]) <= 260, error


@pytest.mark.parametrize("name", list(ROUTES))
async def test_every_field_against_the_grid(name: str) -> None:
    path, type_, base, at = ROUTES[name]
    bench = FaceBench()
    families = {"number": NUMBERS, "text": TEXTS, "free": FREE}
    counts = dict.fromkeys((200, 400, 404), 0)
    for field in shapes.type_info(type_).fields:  # type: ignore[attr-defined]
        for kind in sorted(kinds(field.type)):
            for value in families[kind]:
                fetch = bench.fetch(path, raw_body(base, at, field.encode_name, value))
                if not fetch.over:
                    await fetch.done()
                bench.readers.remove(fetch)
                check(fetch, (field.encode_name, value[:60]))
                counts[fetch.status] += 1
                if value == "null" and field.name not in ("model", "prompt", "text", "rid", "tokens"):
                    assert fetch.status == 200, (field.name, "null means absent")
    assert counts[400] > 20, counts
    await bench.baseline()


RICH: dict[str, dict[str, Any]] = {
    "/v1/completions": {
        "model": "fake", "prompt": ["ab", "c"], "max_tokens": 2, "n": 2, "best_of": 2, "echo": True, "logprobs": 3,
        "stop": ["q"], "logit_bias": {"97": 1.5}, "seed": 1, "stream": True,
        "stream_options": {"include_usage": True},
    },
    "/generate": {
        "input_ids": [[97, 98], [99]], "rid": ["a", "b"], "stream": True, "return_logprob": [True, False],
        "logprob_start_len": [0, -1], "top_logprobs_num": 2, "return_text_in_logprobs": True,
        "sampling_params": {"max_new_tokens": 2, "n": 2, "stop": "q", "temperature": 0.5, "sampling_seed": 3},
    },
    "/tokenize": {"messages": [{"role": "user", "content": "x"}], "return_token_strs": True, "model": "fake"},
    "/detokenize": {"tokens": [97, 98], "skip_special_tokens": False, "model": "fake"},
}  # fmt: skip


@pytest.mark.parametrize("path", list(RICH))
async def test_mutated_requests(path: str) -> None:
    """A rich request with something odd anywhere in it: always an answer."""
    bench = FaceBench(waiting_limit=10_000)
    rng = random.Random(path)
    statuses = set()
    for _ in range(400):
        body = json.dumps(mutate(rng, RICH[path])).encode("utf-8", "surrogatepass")
        fetch = bench.fetch(path, body, method="POST")
        if not fetch.over:
            await fetch.done()
        bench.readers.remove(fetch)
        check(fetch, body)
        statuses.add(fetch.status)
    assert {200, 400} <= statuses
    await bench.baseline()
