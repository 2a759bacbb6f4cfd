"""POST /generate in SGLang's shape over the fake engine, /abort_request, and the routes about engine and
tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
from face_bench import ALICE, BOB, FaceBench, Fetch
from fake_engine import likely, replay
from fake_prompter import letters

from headrace.runtime.request import SamplingParams
from headrace.server.faces.engine_http import NOT_GENERATIVE

END = 10


def generate(bench: FaceBench, tenant: Any = ALICE, **fields: Any) -> Fetch:
    sampling = {"max_new_tokens": 5, "sampling_seed": 1, "temperature": 1.0, **fields.pop("sampling", {})}
    if not ({"text", "input_ids"} & set(fields)):
        fields["text"] = "once upon"
    return bench.fetch("/generate", {"sampling_params": sampling, **fields}, tenant=tenant)


def answer(prompt: str, count: int = 5, seed: int = 1) -> str:
    return bytes(replay(list(prompt.encode()), count, SamplingParams(seed=seed), 256, letters)).decode()


# -- answers ---------------------------------------------------------------------------------------------------


async def test_one_answer() -> None:
    bench = FaceBench()
    for given in ({"text": "once upon"}, {"input_ids": list(b"once upon")}):
        reply = (await generate(bench, rid="r1", **given).done()).json
        assert set(reply) == {"text", "output_ids", "meta_info"}
        assert reply["text"] == answer("once upon") == bytes(reply["output_ids"]).decode()
        meta = reply["meta_info"]
        assert meta.pop("e2e_latency") >= 0.0
        assert meta.pop("cached_tokens") in (0, 8)
        assert meta == {
            "id": "r1",
            "finish_reason": {"type": "length", "length": 5},
            "prompt_tokens": 9,
            "completion_tokens": 5,
            "reasoning_tokens": 0,
        }
    await bench.baseline()


@pytest.mark.parametrize("given", [{"text": ["a", "bc"]}, {"input_ids": [[97], [98, 99]]}, {"text": ["a"]}])
async def test_a_batch_is_a_list(given: dict[str, Any]) -> None:
    prompts = ["a", "bc"][: len(next(iter(given.values())))]
    reply = (await generate(FaceBench(), rid="job", **given).done()).json
    assert [item["index"] for item in reply] == list(range(len(prompts)))
    assert [item["text"] for item in reply] == [answer(prompt) for prompt in prompts]
    assert [item["meta_info"]["id"] for item in reply] == [f"job_{k}" for k in range(len(prompts))]


async def test_fields_for_each_prompt() -> None:
    bench = FaceBench()
    body = {
        "text": ["a", "bc"],
        "sampling_params": [
            {"max_new_tokens": 2, "sampling_seed": 7, "temperature": 1},
            {"max_new_tokens": 4, "sampling_seed": 8, "temperature": 1},
        ],
        "return_logprob": [False, True],
        "logprob_start_len": [-1, 0],
        "top_logprobs_num": [0, 2],
        "rid": ["x", "y"],
    }
    one, two = (await bench.fetch("/generate", body).done()).json
    assert one["text"] == answer("a", 2, 7) and two["text"] == answer("bc", 4, 8)
    assert [one["meta_info"]["id"], two["meta_info"]["id"]] == ["x", "y"]
    assert "output_token_logprobs" not in one["meta_info"]
    assert len(two["meta_info"]["output_top_logprobs"]) == 4


async def test_several_answers_to_each_prompt() -> None:
    reply = (await generate(FaceBench(), text=["a", "bc"], sampling={"n": 2}).done()).json
    assert [item["text"] for item in reply] == [answer(p, seed=s) for p in ("a", "bc") for s in (1, 2)]
    reply = (await generate(FaceBench(), text="a", sampling={"n": 2}).done()).json
    assert [item["index"] for item in reply] == [0, 1]


async def test_events_hold_everything_so_far() -> None:
    whole = (await generate(FaceBench(), rid="r").done()).json
    fetch = await generate(FaceBench(), rid="r", stream=True).done()
    events = fetch.data
    said = whole["text"]
    assert [event["text"] for event in events] == [said[: k + 1] for k in range(5)]
    assert [event["output_ids"] for event in events] == [whole["output_ids"][: k + 1] for k in range(5)]
    assert [event["meta_info"]["completion_tokens"] for event in events] == [1, 2, 3, 4, 5]
    assert [event["meta_info"]["finish_reason"] for event in events[:-1]] == [None] * 4
    last = events[-1]
    for each in (last, whole):
        del each["meta_info"]["e2e_latency"]
    assert last == whole
    assert b"event:" not in fetch.body and b": ping" not in fetch.body


async def test_events_of_a_batch_name_their_answer() -> None:
    events = (await generate(FaceBench(), text=["a", "bc"], stream=True).done()).data
    for index, prompt in enumerate(("a", "bc")):
        own = [event for event in events if event["index"] == index]
        assert own[-1]["text"] == answer(prompt)


async def test_silence_is_not_broken() -> None:
    bench = FaceBench(gated=True)
    fetch = generate(bench, stream=True)
    fetch.ping()
    assert fetch.body == b"" and fetch.status == 0
    await fetch.done()


# -- logprobs --------------------------------------------------------------------------------------------------


def oracle(prompt: str, said: str, first: int, top: int) -> tuple[list[Any], list[Any]]:
    """[logprob, id, null] of the tokens from `first` on, and their ranked ones."""
    tokens = list((prompt + said).encode())
    values, tops = [], []
    for place in range(first, len(tokens)):
        ranked = likely(tokens[:place], 256)
        values.append([dict(ranked)[tokens[place]], tokens[place], None])
        tops.append([[value, token, None] for token, value in ranked[:top]])
    return values, tops


@pytest.mark.parametrize("start", [-1, 0, 3, 8, 9, 50])
@pytest.mark.parametrize("top", [0, 3])
async def test_logprobs_are_those_of_the_engine(start: int, top: int) -> None:
    prompt, said = "once upon", answer("once upon")
    bench = FaceBench()
    fields = {"return_logprob": True, "logprob_start_len": start, "top_logprobs_num": top}
    meta = (await generate(bench, **fields).done()).json["meta_info"]
    values, tops = oracle(prompt, said, len(prompt), top)
    assert meta["output_token_logprobs"] == values
    values, inner = oracle(prompt, "", max(0, start), top)
    if 0 <= start < len(prompt):
        values[0][0], inner[0] = None, None  # nothing is said of the token at the start
    else:
        values, inner = [], []
    assert meta["input_token_logprobs"] == values
    if top:
        assert meta["output_top_logprobs"] == tops and meta["input_top_logprobs"] == inner
    else:
        assert "output_top_logprobs" not in meta and "input_top_logprobs" not in meta
    events = (await generate(bench, stream=True, **fields).done()).data
    for event, last in ((events[0], False), (events[-1], True)):
        assert event["meta_info"]["input_token_logprobs"] == values
        assert len(event["meta_info"]["output_token_logprobs"]) == (5 if last else 1)
    assert "input_token_logprobs" not in events[1]["meta_info"]
    await bench.baseline()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_long_prompt_is_named_elsewhere(stream: bool) -> None:
    bench = FaceBench()
    prompt = "a prompt with many tokens. " * 20
    fields = {"return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 4, "text": prompt}
    fetch = await generate(bench, stream=stream, **fields).done()
    meta = (fetch.data[-1] if stream else fetch.json)["meta_info"]
    values, tops = oracle(prompt, "", 0, 4)
    assert meta["input_token_logprobs"][1:] == values[1:] and meta["input_top_logprobs"][1:] == tops[1:]
    assert len(meta["output_token_logprobs"]) == 5
    await bench.baseline()


async def test_logprobs_with_the_names_of_tokens() -> None:
    fields = {"return_logprob": True, "return_text_in_logprobs": True, "logprob_start_len": 0}
    meta = (await generate(FaceBench(), text="a€", **fields).done()).json["meta_info"]
    names = [text for _, _, text in meta["input_token_logprobs"]]
    assert names == ["a", "bytes:\\xe2", "bytes:\\x82", "bytes:\\xac"]


async def test_the_prompt_alone() -> None:
    bench = FaceBench()
    fields = {"return_logprob": True, "logprob_start_len": 0, "sampling": {"max_new_tokens": 0}}
    for stream in (False, True):
        fetch = await generate(bench, stream=stream, **fields).done()
        reply = fetch.data[-1] if stream else fetch.json
        assert reply["text"] == "" and reply["output_ids"] == []
        assert len(reply["meta_info"]["input_token_logprobs"]) == 9
        assert reply["meta_info"]["output_token_logprobs"] == []
        assert reply["meta_info"]["completion_tokens"] == 0


# -- ends ------------------------------------------------------------------------------------------------------


async def test_how_an_answer_ended() -> None:
    said = answer("once upon", 12)
    reply = (await generate(FaceBench(), sampling={"max_new_tokens": 12, "stop": said[4:6]}).done()).json
    assert reply["meta_info"]["finish_reason"] == {"type": "stop", "matched": said[4:6]}
    bench = FaceBench(eos=frozenset({ord(said[3])}))
    reply = (await generate(bench, sampling={"max_new_tokens": 12}).done()).json
    assert reply["meta_info"]["finish_reason"] == {"type": "stop", "matched": ord(said[3])}
    assert reply["output_ids"][-1] == ord(said[3]) and reply["text"] == said[: said.index(said[3])]


async def abort(bench: FaceBench, tenant: Any = ALICE, **fields: Any) -> Fetch:
    return await bench.fetch("/abort_request", fields, tenant=tenant).done()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "by", [{"rid": "mine"}, {"abort_all": True}, {"rid": "mine", "abort_message": "enough"}]
)
async def test_an_abort_ends_answers_with_what_they_said(stream: bool, by: dict[str, Any]) -> None:
    bench = FaceBench(gated=True)
    long = {"max_new_tokens": 500}
    fetch = generate(bench, rid="mine", stream=stream, sampling=long)
    other = generate(bench, rid="other", sampling={"max_new_tokens": 20})
    foreign = generate(bench, tenant=BOB, rid="mine", sampling={"max_new_tokens": 20})
    stream_of = fetch.answer.streams[0]  # type: ignore[union-attr]
    await bench.until(lambda: stream_of.head > 3)
    assert (await abort(bench, tenant=BOB, rid="nothing")).status == 200
    assert (await abort(bench, **by)).status == 200
    await fetch.done()
    reply = fetch.data[-1] if stream else fetch.json
    assert fetch.status == 200
    assert reply["meta_info"]["finish_reason"] == {
        "type": "abort",
        "message": by.get("abort_message", "Aborted by AbortReq."),
    }
    assert answer("once upon", 500).startswith(reply["text"]) and len(reply["text"]) > 3
    await foreign.done()
    assert foreign.json["meta_info"]["finish_reason"]["type"] == "length", "keys end only what is theirs"
    await other.done()
    reason = other.json["meta_info"]["finish_reason"]["type"]
    assert reason == ("abort" if "abort_all" in by else "length")
    await bench.baseline()


async def test_an_abort_of_a_batch_by_its_name_and_by_one_of_its_prompts() -> None:
    bench = FaceBench(gated=True)
    fetch = generate(bench, text=["a", "b"], rid="job", sampling={"max_new_tokens": 50, "n": 2})
    await bench.until(lambda: fetch.answer.streams[3].head > 2)  # type: ignore[union-attr]
    await abort(bench, rid="job_0")
    await bench.until(lambda: fetch.answer.streams[3].head > 5)  # type: ignore[union-attr]
    await abort(bench, rid="job")
    items = (await fetch.done()).json
    assert {item["meta_info"]["finish_reason"]["type"] for item in items} == {"abort"}
    assert [item["meta_info"]["id"] for item in items] == ["job_0_0", "job_0_1", "job_1_0", "job_1_1"]
    assert len(items[0]["text"]) < len(items[2]["text"])
    await bench.baseline()


async def test_what_ended_is_forgotten() -> None:
    bench = FaceBench(gated=True)
    await generate(bench).done()
    await generate(bench, stream=True).done()
    assert (await generate(bench, text="").done()).status == 400
    fetch = generate(bench, stream=True)
    fetch.drop()
    await bench.baseline()
    face = bench.routes.http["/generate"].respond.__self__  # type: ignore[attr-defined]
    assert not face._running


async def test_an_abort_needs_a_name() -> None:
    assert (await abort(FaceBench())).status == 400


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"text": "a", "input_ids": [97]}, "text"),
        ({"text": None}, "text"),
        ({"text": []}, "text"),
        ({"text": ""}, "text"),
        ({"input_ids": [97, [98]]}, "input_ids"),
        ({"input_ids": [[97], []]}, "input_ids"),
        ({"input_ids": [256]}, "input_ids"),
        ({"rid": ["a", "b"]}, "rid"),
        ({"text": ["a", "b"], "return_logprob": [True]}, "return_logprob"),
        ({"return_logprob": True, "top_logprobs_num": 21}, "top_logprobs_num"),
        ({"logprob_start_len": -2}, "logprob_start_len"),
        ({"token_ids_logprob": [1]}, "token_ids_logprob"),
        ({"image_data": "x"}, "image_data"),
        ({"sampling": {"regex": "a"}}, "sampling_params.regex"),
        ({"sampling": {"max_new_tokens": -1}}, "sampling_params.max_new_tokens"),
        ({"sampling": {"max_new_tokens": 5000}}, "sampling_params.max_new_tokens"),
        ({"sampling": {"n": 2, "max_new_tokens": 0}}, "sampling_params.n"),
        ({"sampling": {"stop_token_ids": [256]}}, "sampling_params.stop_token_ids"),
        ({"sampling": {"temperature": -1}}, "sampling_params.temperature"),
    ],
)
async def test_what_is_refused_names_its_field(fields: dict[str, Any], param: str) -> None:
    bench = FaceBench()
    fetch = await generate(bench, **fields).done()
    assert fetch.status == 400 and fetch.json["error"]["param"] == param, fetch.body
    await bench.baseline()


# -- the engine ------------------------------------------------------------------------------------------------


async def test_the_cache_is_flushed_when_nothing_runs() -> None:
    bench = FaceBench(gated=True)
    prompt = "x" * 100
    await generate(bench, text=prompt).done()
    await bench.baseline()
    assert bench.runtime.stats()["kv_pages_cached"] > 0
    running = generate(bench, text="y", sampling={"max_new_tokens": 30})
    fetch = await bench.fetch("/flush_cache").done()
    assert fetch.status == 400 and b"running" in fetch.body
    waiting = bench.fetch("/flush_cache", method="POST", query={"timeout": "30"})
    impatient = bench.fetch("/flush_cache", query={"timeout": "0.5"})
    bench.clock.advance(1.0)
    await impatient.done()
    assert impatient.status == 400
    await running.done()
    await bench.baseline()
    bench.clock.advance(1.0)
    await waiting.done()
    assert waiting.status == 200
    assert bench.runtime.stats()["kv_pages_cached"] == 0
    reply = (await generate(bench, text=prompt).done()).json
    assert reply["meta_info"]["cached_tokens"] == 0
    for wrong in ("soon", "-1", "nan", "1e9"):
        assert (await bench.fetch("/flush_cache", query={"timeout": wrong}).done()).status == 400


async def test_what_benchmarks_ask_before_they_begin() -> None:
    bench = FaceBench()
    for path in ("/ping", "/health_generate"):
        assert (await bench.fetch(path).done()).status == 200
        assert bench.routes.http[path].public
    bench.runtime.drain()
    assert (await bench.fetch("/ping").done()).status == 503


async def test_facts_of_server_and_model() -> None:
    bench = FaceBench()
    for path in ("/server_info", "/get_server_info"):
        facts = (await bench.fetch(path).done()).json
        assert facts["context_length"] == bench.runtime.max_context
        assert facts["max_total_num_tokens"] == 256 * 16 and facts["version"] == "1.2.3"
        assert facts["internal_states"][0]["running"] == 0 and "decode" not in facts
    for path in ("/model_info", "/get_model_info"):
        facts = (await bench.fetch(path).done()).json
        assert facts["model_path"] == "fake" and facts["is_generation"] is True


@pytest.mark.parametrize("path", sorted(NOT_GENERATIVE))
async def test_what_a_generative_model_does_not_offer(path: str) -> None:
    fetch = await FaceBench().fetch(path, {"model": "fake", "input": "x"}).done()
    assert fetch.status == 400
    assert fetch.json["error"]["code"] == "unsupported_endpoint"
    assert "generates text" in fetch.json["error"]["message"]


# -- the tokenizer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/tokenize", "/v1/tokenize"])
async def test_text_to_ids(path: str) -> None:
    bench = FaceBench()
    for body in ({"prompt": "a€"}, {"text": "a€"}, {"prompt": "a€", "add_special_tokens": False}):
        reply = (await bench.fetch(path, body).done()).json
        assert reply == {
            "tokens": [97, 0xE2, 0x82, 0xAC],
            "count": 4,
            "max_model_len": bench.runtime.max_context,
        }
    reply = (await bench.fetch(path, {"prompt": "ab", "return_token_strs": True}).done()).json
    assert reply["token_strs"] == ["a", "b"]
    messages = [{"role": "user", "content": "hi"}]
    reply = (await bench.fetch(path, {"messages": messages}).done()).json
    assert bytes(reply["tokens"]) == b"user: hi\nassistant: "
    assert (await bench.fetch(path, {"prompt": ""}).done()).json["tokens"] == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"prompt": "a", "messages": [{"role": "user", "content": "hi"}]}, 400),
        ({"prompt": "a", "model": "other"}, 404),
        ({"messages": [{"role": "user"}]}, 400),
        ({"prompt": "a", "chat_template": "{{ x }}"}, 400),
        (b'{"prompt": "\\ud800", "add_special_tokens": false}', 400),
    ],
)
async def test_text_that_is_refused(body: Any, status: int) -> None:
    assert (await FaceBench().fetch("/tokenize", body).done()).status == status


@pytest.mark.parametrize("path", ["/detokenize", "/v1/detokenize"])
async def test_ids_to_text(path: str) -> None:
    bench = FaceBench(eos=frozenset({END}))
    tokens = [97, END, 98]
    reply = (await bench.fetch(path, {"tokens": tokens}).done()).json
    assert reply == {"prompt": "ab", "text": "ab"}
    reply = (await bench.fetch(path, {"tokens": tokens, "skip_special_tokens": False}).done()).json
    assert reply["text"] == f"a<end {END}>b"
    for wrong in ([256], [-1], ["a"], None):
        fetch = await bench.fetch(path, {"tokens": wrong}).done()
        assert fetch.status == 400 and fetch.json["error"]["param"].startswith("tokens")


async def test_facts_of_the_tokenizer() -> None:
    facts = (await FaceBench(eos=frozenset({END})).fetch("/tokenizer_info").done()).json
    assert facts["tokenizer_class"] == "Bytes" and facts["eos_token"] == "<end>"
    assert facts["bos_token"] is None and facts["chat_template"] is None
    assert facts["eos_token_ids"] == [END] and facts["vocab_size"] == 256


async def test_no_text_is_taken_while_the_server_stops() -> None:
    bench = FaceBench()
    bench.runtime.drain()
    assert (await bench.fetch("/tokenize", {"prompt": "a"}).done()).status == 503
