"""Any interleaving of requests and lost connections over all faces of one server: each answer is the text that the
model alone says to its prompt, told in order and once, streamed and whole alike, and counted right."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import pytest
from face_bench import FaceBench, Fetch, Socket
from face_said import text
from fake_prompter import letters
from hypothesis import given, settings
from hypothesis import strategies as st
from realtime_bench import Talk

FACES = ("chat", "completions", "generate", "messages", "ollama", "responses", "realtime", "socket")
small = st.integers(0, 7)
OPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from(FACES), small, st.booleans(), st.integers(1, 20)),
        st.tuples(st.just("ask"), st.sampled_from(FACES), small, st.booleans(), st.integers(1, 20)),
        st.tuples(st.just("leave"), small),
        st.tuples(st.just("land"), st.integers(1, 9)),
        st.tuples(st.just("land"), st.integers(1, 9)),
    ),
    min_size=4,
    max_size=30,
)
Answer = tuple[str, int | None, str]  # prompt, seed if it is known, text


def spoken(prompt: str, seed: int, length: int) -> str:
    """What the fake model says."""
    tokens = list(prompt.encode())
    for _ in range(length):
        tokens.append(letters(tokens, seed, 256))
    return bytes(tokens[len(prompt) :]).decode()


def turn(question: str) -> str:
    return f"user: {question}\nassistant: "


class Asked:
    """One request to a face: how it is put, and what its reply says. `count`: answers that it asks for."""

    def __init__(self, face: str, number: int, kind: int, streamed: bool, limit: int) -> None:
        self.face, self.streamed, self.limit = face, streamed, limit
        self.question = f"q{number} "
        self.seed = 7 * number
        self.count = 1 + kind % 3 if face in ("chat", "completions", "generate") else 1
        self.fetch: Fetch | None = None
        user = [{"role": "user", "content": self.question}]
        logprobs: dict[str, Any] = {"logprobs": True} if kind > 3 else {}
        match face:
            case "chat":
                self.path, self.body = "/v1/chat/completions", {
                    "messages": user, "max_tokens": limit, "n": self.count, "seed": self.seed,
                    "stream_options": {"include_usage": True}, **logprobs,
                }  # fmt: skip
            case "completions":
                self.path, self.body = "/v1/completions", {
                    "prompt": self.question, "max_tokens": limit, "n": self.count, "seed": self.seed,
                    "stream_options": {"include_usage": True},
                    **({"logprobs": 1, "echo": True} if logprobs else {}),
                }  # fmt: skip
            case "generate":
                sampling = {"max_new_tokens": limit, "n": self.count, "sampling_seed": self.seed}
                told = {"return_logprob": bool(logprobs)}
                self.path, self.body = (
                    "/generate",
                    {"text": self.question, "sampling_params": sampling, **told},
                )
            case "messages":
                self.path, self.body = "/v1/messages", {"messages": user, "max_tokens": limit}
            case "ollama":
                options = {"num_predict": limit, "seed": self.seed}
                self.path, self.body = "/api/chat", {"messages": user, "options": options}
            case _:
                include = {"include": ["message.output_text.logprobs"]} if logprobs else {}
                self.path, self.body = "/v1/responses", {
                    "input": self.question, "max_output_tokens": limit, "seed": self.seed, **include,
                }  # fmt: skip
        self.body |= {"model": "fake", "stream": streamed}

    def answers(self) -> tuple[list[Answer], int, int]:
        """The answers, and the tokens of prompt and answers as the reply counts them."""
        assert self.fetch is not None and self.fetch.status == 200, self.fetch and self.fetch.body
        body = self.fetch.body.decode()
        events = [json.loads(line[6:]) for line in body.split("\n") if line.startswith("data: {")]
        texts = [""] * self.count
        prompt = turn(self.question)
        match self.face:
            case "chat" | "completions":
                whole = events if self.streamed else [self.fetch.json]
                for choice in (choice for event in whole for choice in event["choices"]):
                    said = choice.get("delta") or choice.get("message") or {"content": choice.get("text")}
                    texts[choice["index"]] += said.get("content") or ""
                if self.face == "completions":
                    prompt = self.question
                    if self.body.get("echo"):
                        assert all(each.startswith(prompt) for each in texts)
                        texts = [each[len(prompt) :] for each in texts]
                usage = whole[-1]["usage"]
                counts = usage["prompt_tokens"], usage["completion_tokens"]
            case "generate":
                whole = events if self.streamed else self.fetch.json
                for event in whole if isinstance(whole, list) else [whole]:
                    index = event.get("index", 0)
                    assert event["text"].startswith(texts[index]), "the text only grows"
                    texts[index] = event["text"]
                    meta = event["meta_info"]
                    assert meta["completion_tokens"] == len(event["text"])
                prompt = self.question
                counts = meta["prompt_tokens"], self.count * self.limit
            case "messages":
                if self.streamed:
                    texts = [
                        "".join(e["delta"]["text"] for e in events if e["type"] == "content_block_delta")
                    ]
                    first, last = events[0]["message"]["usage"], events[-2]["usage"]
                else:
                    texts = ["".join(block["text"] for block in self.fetch.json["content"])]
                    first = last = self.fetch.json["usage"]
                counts = first["input_tokens"] + first["cache_read_input_tokens"], last["output_tokens"]
            case "ollama":
                rows = [json.loads(line) for line in body.splitlines()]
                texts = ["".join(row["message"]["content"] for row in rows)]
                counts = rows[-1]["prompt_eval_count"], rows[-1]["eval_count"]
            case _:
                final = events[-1]["response"] if self.streamed else self.fetch.json
                texts = [text(final)]
                if self.streamed:
                    deltas = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
                    assert "".join(deltas) == texts[0]
                    assert [e["sequence_number"] for e in events] == list(range(len(events)))
                counts = final["usage"]["input_tokens"], final["usage"]["output_tokens"]
        seeds = [None if self.face == "messages" else self.seed + index for index in range(self.count)]
        return [(prompt, seed, said) for seed, said in zip(seeds, texts, strict=True)], *counts


class Play:
    """One script over a server with all its faces."""

    def __init__(self) -> None:
        self.bench = FaceBench(gated=True)
        self.talk = Talk(self.bench)
        self.socket: Socket = self.bench.socket()
        self.asked: list[Asked] = []
        self.heard = Counter[str]()

    async def do(self, op: tuple[Any, ...]) -> None:
        match op:
            case ("ask", face, kind, streamed, limit):
                asked = Asked(face, len(self.asked), kind, streamed, limit)
                self.asked.append(asked)
                name = {"name": f"n{len(self.asked) - 1}"}
                if face == "realtime":
                    part = {"type": "input_text", "text": asked.question}
                    item = {"type": "message", "role": "user", "content": [part]}
                    more = {"conversation": "none", "input": [item], "metadata": name}
                    self.talk.ask(max_output_tokens=limit, seed=asked.seed, **more)
                elif face == "socket":
                    lane = f"lane{kind}"
                    self.socket.send(
                        {**asked.body, "type": "response.create", "stream_id": lane, "metadata": name}
                    )
                else:
                    asked.fetch = self.bench.fetch(asked.path, asked.body)
            case ("leave", which):
                live = [a.fetch for a in self.asked if a.fetch is not None and not a.fetch.over]
                if live:
                    live[which % len(live)].drop()
                    live[which % len(live)].status = 499
            case ("land", count):
                for _ in range(count):
                    self.bench.flush()
                    self.bench.clock.advance(0.0)
                    self.bench.engine.land(1)
                    await asyncio.sleep(0)

    async def finish(self) -> None:
        await self.bench.idle()
        await self.bench.until(lambda: all(a.fetch is None or a.fetch.over for a in self.asked))
        self.bench.flush()

    def check(self) -> None:
        finals = {f["metadata"]["name"]: f for f in self.talk.reader.finals}
        finals |= {
            e["response"]["metadata"]["name"]: e["response"]
            for e in self.socket.said
            if e["type"] in ("response.completed", "response.incomplete")
        }
        refused = [error["error"]["code"] for error in self.talk.reader.errors]
        assert refused == ["rate_limit_exceeded"] * len(refused), "so many at once, no more"
        for number, asked in enumerate(self.asked):
            if asked.fetch is not None and asked.fetch.status == 499:
                continue
            if asked.fetch is None:
                if asked.face == "realtime" and f"n{number}" not in finals:
                    refused.pop()
                    continue
                final = finals[f"n{number}"]
                answers: list[Answer] = [(turn(asked.question), asked.seed, text(final))]
                counts = final["usage"]["input_tokens"], final["usage"]["output_tokens"]
            else:
                answers, *rest = asked.answers()
                counts = rest[0], rest[1]
            self.heard[asked.face] += 1
            assert counts == (len(answers[0][0]), sum(len(said) for *_, said in answers)), asked.face
            for prompt, seed, said in answers:
                assert len(said) == asked.limit, "one token a letter"
                assert seed is None or said == spoken(prompt, seed, asked.limit), asked.face
        assert not refused, "every request is answered, once"


async def whole_play(ops: list[tuple[Any, ...]]) -> Play:
    play = Play()
    for op in ops:
        await play.do(op)
    await play.finish()
    play.check()
    play.talk.drop()
    play.socket.drop()
    await play.bench.baseline()
    return play


@settings(max_examples=60)
@given(OPS)
def test_any_interleaving(ops: list[tuple[Any, ...]]) -> None:
    asyncio.run(whole_play(ops))


@pytest.mark.parametrize("streamed", [False, True])
def test_every_face_at_once(streamed: bool) -> None:
    ops: list[tuple[Any, ...]] = []
    for kind in (0, 1, 2, 4, 5, 6):
        ops += [("ask", face, kind, streamed, 5 + kind) for face in FACES] + [("land", 3)]
    play = asyncio.run(whole_play(ops))
    assert play.heard == dict.fromkeys(FACES, 6)


def test_more_than_may_run_on_one_realtime_connection() -> None:
    play = asyncio.run(whole_play([("ask", "realtime", 0, True, 2)] * 18))
    assert play.heard["realtime"] == 16
