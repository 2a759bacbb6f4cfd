"""Ollama's /api: lines of JSON, whole replies, options, refusals, and the small routes."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest
from face_bench import FaceBench, Fetch
from ollama import ChatResponse, GenerateResponse, ListResponse, ProcessResponse, ShowResponse

from headrace.runtime.interface import ModelCard
from headrace.runtime.plan import NON_FINITE
from headrace.server.faces.ollama_http import restated
from headrace.server.replies import error_reply

END = 10
COUNTS = {
    "total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration",
}  # fmt: skip


def alphabet(count: int) -> Any:
    """`count` letters, then the end-of-text token; the prompt ends with a colon and a space."""

    def choose(tokens: list[int], seed: int, width: int) -> int:
        at = len(tokens) - bytes(tokens).rindex(b": ") - 2
        return END if at >= count else 97 + at % 26

    return choose


def chat(bench: FaceBench, content: str = "hello", **fields: Any) -> Fetch:
    options = {"num_predict": 5, "seed": 1, **fields.pop("options", {})}
    body = {"model": "fake", "messages": [{"role": "user", "content": content}], "options": options, **fields}
    return bench.fetch("/api/chat", body)


def generate(bench: FaceBench, prompt: str = "hello", **fields: Any) -> Fetch:
    options = {"num_predict": 5, "seed": 1, **fields.pop("options", {})}
    return bench.fetch("/api/generate", {"model": "fake", "prompt": prompt, "options": options, **fields})


def check_line(line: dict[str, Any], *, generated: bool = False, last: bool = False) -> str:
    """One line of a stream, or a whole reply; returns its text."""
    model = GenerateResponse if generated else ChatResponse
    model.model_validate_json(json.dumps(line), strict=True)
    facts = {"done_reason", *COUNTS} if last else set()
    assert set(line) == {"model", "created_at", "done", "response" if generated else "message"} | facts
    assert line["done"] is last and line["created_at"].endswith("Z")
    datetime.fromisoformat(line["created_at"])
    if last:
        assert all(isinstance(line[name], int) for name in COUNTS)
        assert line["eval_duration"] > 0 and line["prompt_eval_duration"] > 0
        assert line["total_duration"] >= line["eval_duration"]
    if generated:
        return line["response"]
    assert set(line["message"]) == {"role", "content"} and line["message"]["role"] == "assistant"
    return line["message"]["content"]


def check_lines(fetch: Fetch, *, generated: bool = False) -> tuple[str, dict[str, Any]]:
    """A whole stream; returns the text and the last line."""
    assert fetch.status == 200 and fetch.body.endswith(b"}\n") and b"\n\n" not in fetch.body
    *lines, last = [json.loads(line) for line in fetch.body.splitlines()]
    texts = [check_line(line, generated=generated) for line in lines]
    assert all(texts), "a line without text comes after a silence only"
    assert check_line(last, generated=generated, last=True) == ""
    return "".join(texts), last


async def test_a_chat_streams_unless_told_not_to() -> None:
    bench = FaceBench()
    text, last = check_lines(await chat(bench).done())
    assert len(text) == 5 and last["done_reason"] == "length"
    assert last["eval_count"] == 5
    assert last["prompt_eval_count"] == len("user: hello\nassistant: ")
    whole = (await chat(bench, stream=False).done()).json
    assert check_line(whole, last=True) == text
    assert whole["eval_count"] == 5
    await bench.baseline()


async def test_a_completion_streams_unless_told_not_to() -> None:
    bench = FaceBench()
    text, last = check_lines(await generate(bench).done(), generated=True)
    assert len(text) == 5 and last["done_reason"] == "length"
    whole = (await generate(bench, stream=False).done()).json
    assert check_line(whole, generated=True, last=True) == text
    assert bytes(bench.prompts[-1]).decode() == "user: hello\nassistant: "
    await generate(bench, system="be brief").done()
    assert bytes(bench.prompts[-1]).decode() == "system: be brief\nuser: hello\nassistant: "
    await generate(bench, raw=True).done()
    assert bytes(bench.prompts[-1]).decode() == "hello"
    await bench.baseline()


async def test_the_model_s_end_and_stop_strings() -> None:
    bench = FaceBench(choose=alphabet(10), eos=frozenset({END}))
    text, last = check_lines(await chat(bench, options={"num_predict": -1}).done())
    assert (text, last["done_reason"]) == ("abcdefghij", "stop")
    for stop in ("def", ["zz", "def"]):
        text, last = check_lines(await chat(bench, options={"num_predict": 50, "stop": stop}).done())
        assert (text, last["done_reason"]) == ("abc", "stop")
    await bench.baseline()


@pytest.mark.parametrize("limit", [-1, -2, None, 10_000])
async def test_an_answer_without_a_limit_fills_the_context(limit: int | None) -> None:
    bench = FaceBench(page_count=4)
    _, last = check_lines(await chat(bench, options={"num_predict": limit}).done())
    assert last["done_reason"] == "length"
    assert last["prompt_eval_count"] + last["eval_count"] == bench.runtime.max_context


async def test_options_reach_the_ask() -> None:
    bench = FaceBench()
    await chat(
        bench,
        options={
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 7,
            "min_p": 0.1,
            "repeat_penalty": 1.1,
            "presence_penalty": 0.2,
            "frequency_penalty": 0.3,
            "num_ctx": 8192,
            "num_gpu": 1,
            "stop": ["x"],
            "tfs_z": 1.0,
            "mirostat": 0,
            "penalize_newline": True,
        },
        keep_alive="5m",
        think=False,
        format="",
        tools=[],
    ).done()
    ask = bench.asks[-1]
    assert (ask.temperature, ask.top_p, ask.top_k, ask.min_p) == (0.5, 0.9, 7, 0.1)
    assert (ask.repetition_penalty, ask.presence_penalty, ask.frequency_penalty) == (1.1, 0.2, 0.3)
    assert ask.max_tokens == 5 and ask.seed == 1 and ask.stop == ("x",)
    assert ask.template_options == {"enable_thinking": False}
    for think in (True, "high"):
        await chat(bench, think=think).done()
        assert bench.asks[-1].template_options == {"enable_thinking": True}


@pytest.mark.parametrize("keep_alive", [None, 0, -1, "10m"])
async def test_a_request_for_nothing_says_that_the_model_is_loaded(keep_alive: Any) -> None:
    bench = FaceBench()
    for path, body in (("/api/chat", {"messages": []}), ("/api/chat", {}), ("/api/generate", {"prompt": ""})):
        reply = bench.fetch(path, {"model": "fake", "keep_alive": keep_alive, **body}).json
        assert reply["done"] is True and reply["done_reason"] == "load"
        assert (reply["message"]["content"] if path == "/api/chat" else reply["response"]) == ""
    assert not bench.prompts


@pytest.mark.parametrize(
    ("path", "fields", "named"),
    [
        ("/api/chat", {"options": {"temperature": 3}}, "options.temperature"),
        ("/api/chat", {"options": {"num_predict": 0}}, "options.num_predict"),
        ("/api/chat", {"options": {"mirostat": 2}}, "options.mirostat"),
        ("/api/chat", {"options": {"tfs_z": 0.5}}, "options.tfs_z"),
        ("/api/chat", {"format": "xml"}, "format"),
        ("/api/chat", {"format": 5}, "format"),
        ("/api/chat", {"top_logprobs": 3}, "top_logprobs"),
        ("/api/chat", {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ("/api/chat", {"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ("/api/chat", {"messages": [{"role": "user", "content": "x" * 9000}]}, "messages"),
        ("/api/chat", {"x_zork": 1}, "x_zork"),
        ("/api/generate", {"prompt": "x", "suffix": "y"}, "suffix"),
        ("/api/generate", {"prompt": "x", "template": "{{ .Prompt }}"}, "template"),
        ("/api/generate", {"prompt": "x", "context": [1, 2]}, "context"),
        ("/api/generate", {"prompt": "x", "raw": True, "system": "y"}, "system"),
        ("/api/generate", {"prompt": "x" * 9000}, "prompt"),
        ("/api/show", {"model": None}, "model"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(path: str, fields: dict[str, Any], named: str) -> None:
    bench = FaceBench()
    start = {"messages": [{"role": "user", "content": "x"}]} if path == "/api/chat" else {}
    fetch = await bench.fetch(path, {"model": "fake", **start, **fields}).done()
    assert fetch.status == 400 and set(fetch.json) == {"error"}
    assert named in fetch.json["error"]
    await bench.baseline()


async def test_names_of_the_model() -> None:
    bench = FaceBench()
    for name in ("fake", "fake:latest", "default", "default:latest"):
        text = json.loads((await chat(bench, model=name, stream=False).done()).body)
        assert text["model"] == name, "told as it was asked for"
        assert bench.fetch("/api/show", {"name": name}).status == 200
    for name in ("llama3", "fake:7b"):
        for fetch in (
            chat(bench, model=name),
            generate(bench, model=name),
            bench.fetch("/api/show", {"model": name}),
        ):
            assert fetch.status == 404 and fetch.json == {"error": f"model '{name}' not found"}


async def test_failures_before_and_after_the_first_line() -> None:
    def broken(after: int) -> Any:
        return lambda tokens, seed, width: NON_FINITE if len(tokens) >= 23 + after else 97

    bench = FaceBench(choose=broken(0))
    for stream in (False, True):
        fetch = await chat(bench, stream=stream).done()
        assert fetch.status == 500 and set(fetch.json) == {"error"}
    bench = FaceBench(choose=broken(3))
    fetch = await chat(bench).done()
    *lines, last = [json.loads(line) for line in fetch.body.splitlines()]
    assert fetch.status == 200 and "".join(map(check_line, lines)) == "aaa"
    assert set(last) == {"error"} and isinstance(last["error"], str)
    await bench.baseline()


async def test_a_silence_is_broken_by_a_line_without_text() -> None:
    bench = FaceBench(gated=True)
    fetch = chat(bench)
    fetch.ping()
    assert fetch.status == 200 and check_line(json.loads(fetch.body)) == ""
    await fetch.done()
    assert json.loads(fetch.body.splitlines()[-1])["done"] is True


async def test_a_client_that_goes_is_cancelled() -> None:
    bench = FaceBench(gated=True)
    leaving = [
        chat(bench, options={"num_predict": 900}),
        generate(bench, stream=False, options={"num_predict": 900}),
    ]
    await bench.until(lambda: bool(leaving[0].chunks))
    for fetch in leaving:
        fetch.drop()
    await bench.baseline()


async def test_unknown_fields_are_named_or_refused() -> None:
    bench = FaceBench()
    fetch = await chat(bench, zork=1, options={"yonk": 2}).done()
    assert fetch.headers["x-ignored-fields"] == "options.yonk, zork"
    assert bench.ignored == [("ollama", 2)]
    fetch = chat(FaceBench(settings={"strict_fields": True}), zork=1)
    assert fetch.status == 400 and "zork" in fetch.json["error"]


def test_what_there_is() -> None:
    card = ModelCard("org/model", "LlamaForCausalLM", 600_000_000, "bfloat16", 2048, 256, 1764000000)
    bench = FaceBench(card=card)
    (listed,) = bench.fetch("/api/tags").json["models"]
    ListResponse.model_validate(bench.fetch("/api/tags").json)
    assert listed["name"] == listed["model"] == "org/model:latest"
    assert listed["size"] == 1_200_000_000 and len(listed["digest"]) == 64
    assert listed["details"] == {
        "parent_model": "", "format": "safetensors", "family": "llama", "families": ["llama"],
        "parameter_size": "600.00M", "quantization_level": "BF16",
    }  # fmt: skip
    (running,) = bench.fetch("/api/ps").json["models"]
    ProcessResponse.model_validate(bench.fetch("/api/ps").json)
    assert running["context_length"] == bench.runtime.max_context and running["digest"] == listed["digest"]
    shown = bench.fetch("/api/show", {"model": listed["model"]}).json
    ShowResponse.model_validate(shown)
    assert shown["details"] == listed["details"] and "completion" in shown["capabilities"]
    assert shown["model_info"]["general.parameter_count"] == 600_000_000
    assert shown["model_info"]["llama.context_length"] == bench.runtime.max_context
    major, minor, _ = bench.fetch("/api/version").json["version"].split(".")
    assert (int(major), int(minor)) >= (0, 6), "editors refuse servers below 0.6.4"


def test_refusals_of_the_front_have_the_same_shape() -> None:
    reply = restated(error_reply(401, "a sentence", headers={"www-authenticate": "Bearer"}), "req-7")
    assert reply.status == 401 and json.loads(reply.body) == {"error": "a sentence"}
    assert reply.headers == {"www-authenticate": "Bearer"}


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_logprobs_of_every_token_once(path: str) -> None:
    bench = FaceBench()
    asked: dict[str, Any] = (
        {"messages": [{"role": "user", "content": "x"}]} if path == "/api/chat" else {"prompt": "x"}
    )
    asked |= {"model": "fake", "options": {"num_predict": 6, "seed": 1}, "logprobs": True, "top_logprobs": 2}
    whole = (await bench.fetch(path, {**asked, "stream": False}).done()).json
    text = whole["message"]["content"] if path == "/api/chat" else whole["response"]
    model = ChatResponse if path == "/api/chat" else GenerateResponse
    model.model_validate_json(json.dumps(whole), strict=True)
    assert "".join(each["token"] for each in whole["logprobs"]) == text and len(text) == 6
    for each in whole["logprobs"]:
        assert each["logprob"] <= 0 and len(each["top_logprobs"]) == 2
    lines = [json.loads(line) for line in (await bench.fetch(path, asked).done()).body.splitlines()]
    told = [each for line in lines for each in line.get("logprobs", [])]
    assert told == whole["logprobs"]
    assert all("logprobs" in line for line in lines[:-1]), "each line has those of its own tokens"
    bare = (await bench.fetch(path, {**asked, "logprobs": False, "top_logprobs": 0}).done()).body
    assert b"logprobs" not in bare
