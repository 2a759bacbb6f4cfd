"""POST /v1/completions over the fake engine: prompts of every kind, several at once, echo and logprobs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from face_bench import BOB, FaceBench, Fetch
from fake_engine import likely, replay
from fake_prompter import letters
from openai.types import Completion

from headrace.runtime.plan import NON_FINITE
from headrace.runtime.request import SamplingParams

END = 10


def complete(bench: FaceBench, prompt: Any = "once upon", **fields: Any) -> Fetch:
    fields = {"model": "fake", "max_tokens": 5, "seed": 1, "temperature": 1.0, **fields}
    return bench.fetch("/v1/completions", {"prompt": prompt, **fields})


def answer(prompt: str | bytes, count: int = 5, seed: int = 1) -> str:
    """What the fake model says after a prompt."""
    data = prompt.encode() if isinstance(prompt, str) else prompt
    params = SamplingParams(seed=seed)
    return bytes(replay(list(data), count, params, 256, letters)).decode()


def check(reply: dict[str, Any]) -> None:
    assert reply["object"] == "text_completion" and reply["id"].startswith("cmpl-")
    for choice in reply["choices"]:
        assert set(choice) == {"index", "text", "logprobs", "finish_reason"}
    strict(reply)


def check_chunk(chunk: dict[str, Any]) -> None:
    assert chunk["object"] == "text_completion" and chunk.get("usage", {}) is not None
    # The client's model of a chunk is that of the whole reply, where the reason is known.
    for choice in (filled := json.loads(json.dumps(chunk)))["choices"]:
        choice["finish_reason"] = choice["finish_reason"] or "stop"
    strict(filled)


def strict(reply: dict[str, Any]) -> None:
    """The client's model, but for the null that the API itself has before the first token of an echo."""
    for choice in (reply := json.loads(json.dumps(reply)))["choices"]:
        found = choice["logprobs"]
        if found and found["token_logprobs"][:1] == [None]:
            assert found["top_logprobs"][0] is None
            found["token_logprobs"][0], found["top_logprobs"][0] = 0.0, {}
    Completion.model_validate_json(json.dumps(reply), strict=True)


def columns(prompt: bytes, said: bytes, top: int, *, echo: bool) -> dict[str, Any]:
    """The logprobs object by the oracle."""
    tokens = list(prompt + said)
    first = 0 if echo else len(prompt)
    found: dict[str, Any] = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
    for place in range(first, len(tokens)):
        ranked = likely(tokens[:place], 256)
        found["text_offset"].append(place - first)
        found["tokens"].append(shown(tokens[place]))
        if place == 0:
            found["token_logprobs"].append(None)
            found["top_logprobs"].append(None)
            continue
        value = dict(ranked)[tokens[place]]
        found["token_logprobs"].append(value)
        likeliest = {shown(token): each for token, each in ranked[:top]}
        found["top_logprobs"].append({**likeliest, shown(tokens[place]): value})
    return found


def shown(token: int) -> str:
    return chr(token) if token < 128 else f"bytes:\\x{token:02x}"


# -- prompts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("ab", ["ab"]),
        (["ab"], ["ab"]),
        (["ab", "xyz"], ["ab", "xyz"]),
        ([97, 98], ["ab"]),
        ([[97, 98]], ["ab"]),
        ([[97, 98], [120]], ["ab", "x"]),
    ],
)
async def test_every_kind_of_prompt(prompt: Any, texts: list[str]) -> None:
    bench = FaceBench()
    reply = (await complete(bench, prompt).done()).json
    check(reply)
    assert [choice["index"] for choice in reply["choices"]] == list(range(len(texts)))
    assert [choice["text"] for choice in reply["choices"]] == [answer(text) for text in texts]
    assert {choice["finish_reason"] for choice in reply["choices"]} == {"length"}
    prompt_tokens = sum(map(len, texts))
    assert reply["usage"]["prompt_tokens"] == prompt_tokens
    assert reply["usage"]["completion_tokens"] == 5 * len(texts)
    assert reply["usage"]["total_tokens"] == prompt_tokens + 5 * len(texts)
    assert all(choice["logprobs"] is None for choice in reply["choices"])
    await bench.baseline()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", [97]]}, "prompt"),
        ({"prompt": [97, "a"]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [97, 256]}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [0.5]}, "prompt[0]"),
        ({"prompt": ["a"] * 257}, "prompt"),
        ({"prompt": ["a"] * 100, "n": 3}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 4096}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": 2, "max_tokens": 0}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "and they lived"}, "suffix"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": 10**9}, "logprobs"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"stop_token_ids": [256]}, "stop_token_ids"),
        ({"temperature": 3}, "temperature"),
    ],
)
async def test_what_is_refused_names_its_field(fields: dict[str, Any], param: str) -> None:
    bench = FaceBench()
    for stream in (False, True):
        fetch = await complete(bench, **{"stream": stream, **fields}).done()
        assert fetch.status == 400, fetch.body
        assert fetch.json["error"]["param"] == param, fetch.json
    await bench.baseline()


async def test_best_of_as_n_ranks_nothing_and_is_taken() -> None:
    bench = FaceBench()
    reply = (await complete(bench, n=2, best_of=2).done()).json
    assert len(reply["choices"]) == 2


async def test_an_unknown_model_and_unknown_fields() -> None:
    bench = FaceBench()
    assert (await complete(bench, model="other").done()).status == 404
    fetch = await complete(bench, colour="red").done()
    assert fetch.status == 200 and fetch.headers["x-ignored-fields"] == "colour"


async def test_sixteen_tokens_unless_told_otherwise() -> None:
    bench = FaceBench()
    reply = (await complete(bench, max_tokens=None).done()).json
    assert reply["choices"][0]["text"] == answer("once upon", 16)


async def test_a_hundred_thousand_ids_are_no_flood() -> None:
    bench = FaceBench(page_count=8000)
    fetch = await complete(bench, [97] * 100_000, max_tokens=1).done()
    assert fetch.status == 200 and fetch.json["usage"]["prompt_tokens"] == 100_000


# -- several answers -------------------------------------------------------------------------------------------


async def test_n_answers_draw_with_seeds_of_their_own_and_share_the_prompt() -> None:
    bench = FaceBench()
    prompt = "a story about two rivers and a mill"
    reply = (await complete(bench, [prompt, "b"], n=3).done()).json
    check(reply)
    expected = [answer(text, seed=seed) for text in (prompt, "b") for seed in (1, 2, 3)]
    assert [choice["text"] for choice in reply["choices"]] == expected
    assert reply["usage"]["prompt_tokens"] == len(prompt) + 1
    assert reply["usage"]["completion_tokens"] == 30
    computed = sum(row.count for plan in bench.engine.plans for row in plan.prefill)
    assert computed <= len(prompt) + 1 + 4, "one prefill each; the others feed its last token again"
    await bench.baseline()


async def test_answers_of_one_token_share_through_the_cache() -> None:
    bench = FaceBench()
    prompt = "x" * 100
    reply = (await complete(bench, prompt, n=4, max_tokens=1).done()).json
    assert [choice["text"] for choice in reply["choices"]] == [
        answer(prompt, 1, seed) for seed in (1, 2, 3, 4)
    ]
    computed = sum(row.count for plan in bench.engine.plans for row in plan.prefill)
    assert computed <= 100 + 3 * bench.engine.page_size
    await bench.baseline()


@pytest.mark.parametrize("fields", [{}, {"n": 2}, {"logprobs": 2}, {"logprobs": 0, "echo": True, "n": 2}])
async def test_the_stream_is_the_whole_reply_in_pieces(fields: dict[str, Any]) -> None:
    prompts = ["once", "upon a time"]
    whole = (await complete(FaceBench(), prompts, **fields).done()).json
    bench = FaceBench()
    fetch = await complete(
        bench, prompts, stream=True, stream_options={"include_usage": True}, **fields
    ).done()
    chunks = fetch.data
    for chunk in chunks:
        check_chunk(chunk)
        assert chunk["choices"] or chunk is chunks[-1]
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        own = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(c["text"] for c in own) == choice["text"]
        assert [c["finish_reason"] for c in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]
        if choice["logprobs"] is None:
            assert all(c["logprobs"] is None for c in own)
            continue
        joined = {name: [] for name in choice["logprobs"]}
        for c in own:
            for name, column in c["logprobs"].items():
                joined[name] += column
        assert joined == choice["logprobs"]
    await bench.baseline()


async def test_usage_on_every_chunk() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = (await complete(FaceBench(), stream=True, stream_options=options).done()).data
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3, 4, 5, 5]


# -- echo and logprobs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("top", [0, 1, 5, 20])
@pytest.mark.parametrize("echo", [False, True])
async def test_logprobs_are_those_of_the_engine(top: int, echo: bool) -> None:
    bench = FaceBench()
    prompt = "the prompt is longer than a page of sixteen"
    for _ in range(2):  # the second time the prompt is in the cache
        reply = (await complete(bench, prompt, logprobs=top, echo=echo).done()).json
        check(reply)
        (choice,) = reply["choices"]
        said = answer(prompt)
        assert choice["text"] == (prompt + said if echo else said)
        assert choice["logprobs"] == columns(prompt.encode(), said.encode(), top, echo=echo)
    await bench.baseline()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_long_prompt_is_named_elsewhere(stream: bool) -> None:
    """In a thread, while the answer goes on; the same words as for a short one."""
    bench = FaceBench()
    prompt = "so long that its tokens have ten thousand names. " * 20
    said = answer(prompt, 20)
    fetch = await complete(bench, prompt, max_tokens=20, echo=True, logprobs=10, n=2, stream=stream).done()
    replies = fetch.data if stream else [fetch.json]
    first = [c for reply in replies for c in reply["choices"] if c["index"] == 0]
    assert "".join(c["text"] for c in first) == prompt + said
    expected = columns(prompt.encode(), said.encode(), 10, echo=True)
    for name, column in expected.items():
        assert [each for c in first for each in c["logprobs"][name]] == column
    await bench.baseline()


async def test_a_prompt_that_cannot_be_named_fails_its_request() -> None:
    def broken(token: int) -> tuple[str, bytes | None]:
        raise ValueError("no name")

    bench = FaceBench()
    bench.runtime.prompter.spell = broken  # type: ignore[method-assign]
    for stream in (False, True):
        fetch = await complete(bench, "x" * 200, max_tokens=5, echo=True, logprobs=10, stream=stream).done()
        assert fetch.status == 500 and fetch.json["error"]["code"] == "server_error"
    await bench.baseline()


async def test_echo_without_logprobs() -> None:
    bench = FaceBench()
    for prompt, text in (("ab", "ab"), ([97, 98, 0xE2, 0x82, 0xAC], "ab€")):
        (choice,) = (await complete(bench, prompt, echo=True).done()).json["choices"]
        assert choice["text"] == text + answer(text) and choice["logprobs"] is None


async def test_as_lm_eval_asks_for_likelihoods() -> None:
    """[[ids]], echo, logprobs 1, max_tokens 1: exactly one entry more than the prompt, and `[ctxlen:-1]` is wanted.
    A token that ends the text is an entry as well."""
    context, continuation = b"the capital of france is", b" paris"
    for choose in (letters, lambda tokens, seed, width: END):
        bench = FaceBench(eos=frozenset({END}), choose=choose)
        fields = {"logprobs": 1, "echo": True, "temperature": 0, "seed": 1234, "max_tokens": 1}
        prompts = [list(context + continuation), list(continuation)]
        reply = (await complete(bench, prompts, **fields).done()).json
        for prompt, choice in zip(prompts, reply["choices"], strict=True):
            found = choice["logprobs"]
            assert len(found["tokens"]) == len(found["token_logprobs"]) == len(prompt) + 1
        found = reply["choices"][0]["logprobs"]
        wanted = found["token_logprobs"][len(context) : -1]
        tops = found["top_logprobs"][len(context) : -1]
        expected = columns(context + continuation, b"", 1, echo=True)
        assert wanted == expected["token_logprobs"][len(context) :] and None not in wanted
        assert tops == expected["top_logprobs"][len(context) :]
        greedy = [value == max(top.values()) for value, top in zip(wanted, tops, strict=True)]
        assert len(greedy) == len(continuation)


async def test_no_token_at_all() -> None:
    """max_tokens 0 tells of the prompt alone, whole and streamed."""
    bench = FaceBench(eos=frozenset({END}))
    for stream in (False, True):
        fetch = await complete(bench, "ab", max_tokens=0, echo=True, logprobs=2, stream=stream).done()
        replies = fetch.data if stream else [fetch.json]
        (choice,) = [c for reply in replies for c in reply["choices"]]
        assert choice["text"] == "ab" and choice["finish_reason"] == "length"
        assert choice["logprobs"] == columns(b"ab", b"", 2, echo=True)
    assert fetch.json if not stream else True
    reply = (await complete(bench, "ab", max_tokens=0).done()).json
    assert reply["choices"][0]["text"] == "" and reply["usage"]["completion_tokens"] == 0


async def test_offsets_count_characters_and_halves_of_one_share_theirs() -> None:
    euro = "a€b"
    bench = FaceBench()
    reply = (await complete(bench, euro, echo=True, logprobs=0, max_tokens=1).done()).json
    found = reply["choices"][0]["logprobs"]
    assert found["text_offset"] == [0, 1, 1, 1, 2, 3]
    assert found["tokens"][:5] == ["a", "bytes:\\xe2", "bytes:\\x82", "bytes:\\xac", "b"]


async def test_a_stop_string_cuts_the_text_and_an_end_token_its_reason() -> None:
    said = answer("once upon", 12)
    bench = FaceBench()
    reply = (await complete(bench, max_tokens=12, stop=said[4:6], logprobs=0).done()).json
    (choice,) = reply["choices"]
    assert choice["text"] == said[: said.index(said[4:6])] and choice["finish_reason"] == "stop"
    assert len(choice["logprobs"]["tokens"]) == reply["usage"]["completion_tokens"], "one entry per token"
    bench = FaceBench(eos=frozenset({ord(said[3])}))
    chunks = (await complete(bench, max_tokens=12, logprobs=1, stream=True).done()).data
    tokens = [t for chunk in chunks for c in chunk["choices"] for t in c["logprobs"]["tokens"]]
    assert tokens[-1] == f"<end {ord(said[3])}>"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


# -- failures --------------------------------------------------------------------------------------------------


async def test_one_failed_prompt_fails_the_request_and_frees_the_others() -> None:
    def choose(tokens: list[int], seed: int, width: int) -> int:
        return NON_FINITE if tokens[0] == ord("!") and len(tokens) > 4 else letters(tokens, seed, width)

    bench = FaceBench(choose=choose)
    fetch = await complete(bench, ["fine", "!ab"], max_tokens=50).done()
    assert fetch.status == 500
    await bench.baseline()
    fetch = await complete(bench, ["fine", "!ab"], max_tokens=50, stream=True).done()
    assert fetch.status == 200
    assert fetch.data[-1]["error"]["code"] == "server_error"
    await bench.baseline()


async def test_a_client_that_leaves_cancels_all_its_prompts() -> None:
    bench = FaceBench(gated=True)
    fetch = complete(bench, ["one", "two"], n=3, max_tokens=100, stream=True)
    await bench.until(lambda: len(fetch.chunks) > 3)
    fetch.drop()
    await bench.baseline()


async def test_a_client_that_leaves_before_the_others_joined() -> None:
    bench = FaceBench(gated=True)
    fetch = complete(bench, "one", n=3, max_tokens=100, stream=True)
    fetch.drop()
    await bench.baseline()
    assert not bench.runtime._siblings


async def test_too_many_at_once_are_refused_together() -> None:
    bench = FaceBench(waiting_limit=8)
    fetch = await complete(bench, ["a"] * 5, n=2).done()
    assert fetch.status == 503 and "retry-after" in fetch.headers
    await bench.baseline()


async def test_tenants_share_nothing() -> None:
    bench = FaceBench()
    prompt = "z" * 200
    for tenant, cached in ((None, 0), (BOB, 0)):
        body = {"model": "fake", "prompt": prompt, "max_tokens": 1, "seed": 1}
        fetch = bench.fetch("/v1/completions", body, **({} if tenant is None else {"tenant": tenant}))
        reply = (await fetch.done()).json
        assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] == cached
