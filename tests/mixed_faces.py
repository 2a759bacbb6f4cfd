"""One request on each HTTP face, asked in a shape that a seed draws, and what came back as one kind of thing.

Every reader is strict about the shape and the order of what it reads, also of a stream that was cut.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from babble import END, Want
from face_bench import FaceBench
from fake_engine import likely
from ollama import ChatResponse, GenerateResponse
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from strict_messages import check_events, check_message, events_of
from strict_responses import TERMINAL, check_event, check_response, check_sequence

from headrace.runtime.interface import Tenant


@dataclass
class Told:
    """What was told of one answer. why: "stop", "length", "cancelled"; None: its end was not told."""

    text: str = ""
    why: str | None = None
    ids: list[int] | None = None


@dataclass(frozen=True)
class Counted:
    """The usage of a request."""

    prompt: int
    made: int
    cached: int


def prompt_of(words: str) -> str:
    """What the prompter makes of one user message."""
    return f"user: {words}\nassistant: "


class Sent:
    """One request. `wants`: the answers it asks for, in their order; `counted`: prompt tokens it is told of."""

    path = ""
    name = ""

    def __init__(
        self,
        bench: FaceBench,
        rng: random.Random,
        words: list[str],
        want: Want,
        tenant: Tenant,
        *,
        streamed: bool | None = None,
    ) -> None:
        self.bench = bench
        self.tenant = tenant
        self.words = words[0]
        self.streamed = rng.random() < 0.6 if streamed is None else streamed
        self.wants = [want]
        self.counted = len(want.prompt.encode())
        self.left = False  # dropped by the script
        self.shape(rng, words, want)
        self.fetch = bench.fetch(self.path, self.body(want), tenant=tenant)

    def shape(self, rng: random.Random, words: list[str], want: Want) -> None:
        """Draw what only this face has."""

    def body(self, want: Want) -> dict[str, Any]:
        raise NotImplementedError

    def leave(self) -> None:
        self.left = True
        self.fetch.drop()

    def read(self) -> tuple[list[Told], Counted | None]:
        """What was told of each answer, and the usage if it was told."""
        raise NotImplementedError

    @property
    def whole(self) -> dict[str, Any] | None:
        """The whole body, if this is such a request and it was answered."""
        if self.streamed or self.fetch.status == 0:
            return None
        assert self.fetch.status == 200, self.fetch.body
        return self.fetch.json

    def events(self) -> list[dict[str, Any]]:
        """The SSE data so far; an end is [DONE]."""
        blocks = self.fetch.body.decode().split("\n\n")
        assert blocks.pop() == "", "an event is written whole"
        data = [block.removeprefix("data: ") for block in blocks if not block.startswith(":")]
        done = data[-1:] == ["[DONE]"]
        assert done or self.left or not self.fetch.over
        return [json.loads(each) for each in data[: len(data) - done]]


def copies(want: Want, count: int) -> list[Want]:
    return [Want(want.prompt, want.seed + k, want.limit, want.stop) for k in range(count)]


def usage_of(usage: dict[str, Any]) -> Counted:
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    return Counted(
        usage["prompt_tokens"], usage["completion_tokens"], usage["prompt_tokens_details"]["cached_tokens"]
    )


class Chat(Sent):
    path, name = "/v1/chat/completions", "chat"

    def shape(self, rng: random.Random, words: list[str], want: Want) -> None:
        self.wants = copies(want, rng.choice((1, 1, 2, 3)))
        self.logprobs = rng.random() < 0.3

    def body(self, want: Want) -> dict[str, Any]:
        fields = {"logprobs": True, "top_logprobs": 1} if self.logprobs else {}
        return {
            "model": "fake",
            "messages": [{"role": "user", "content": self.words}],
            "max_completion_tokens": want.limit,
            "seed": want.seed,
            "stop": list(want.stop),
            "n": len(self.wants),
            "stream": self.streamed,
            **({"stream_options": {"include_usage": True}} if self.streamed else {}),
            **fields,
        }

    def read(self) -> tuple[list[Told], Counted | None]:
        told = [Told() for _ in self.wants]
        found: list[list[dict[str, Any]]] = [[] for _ in self.wants]
        counted = None
        if (whole := self.whole) is not None:
            ChatCompletion.model_validate_json(json.dumps(whole), strict=True)
            assert [choice["index"] for choice in whole["choices"]] == list(range(len(told)))
            for each, entries, choice in zip(told, found, whole["choices"], strict=True):
                each.text, each.why = choice["message"]["content"] or "", choice["finish_reason"]
                if self.logprobs:
                    entries += choice["logprobs"]["content"]
            counted = usage_of(whole["usage"])
        elif self.streamed:
            begun: set[int] = set()
            events = self.events()
            assert len({event["id"] for event in events}) <= 1
            for event in events:
                ChatCompletionChunk.model_validate_json(json.dumps(event), strict=True)
                assert counted is None, "the usage is the last"
                if not event["choices"]:
                    counted = usage_of(event["usage"])
                for choice in event["choices"]:
                    each, index = told[choice["index"]], choice["index"]
                    assert each.why is None, "nothing follows the end of an answer"
                    assert ("role" in choice["delta"]) == (index not in begun), "the role comes first, once"
                    begun.add(index)
                    each.text += choice["delta"].get("content") or ""
                    each.why = choice["finish_reason"]
                    if self.logprobs:
                        found[index] += choice["logprobs"]["content"]
        if self.logprobs:
            for want, each, entries in zip(self.wants, told, found, strict=True):
                check_logprobs(want, each, entries)
        return told, counted


def check_logprobs(want: Want, told: Told, entries: list[dict[str, Any]]) -> None:
    """Each entry is that of the token after the ones before, by the oracle; they become `told.ids`."""
    assert all(len(entry["bytes"] or (END,)) == 1 for entry in entries)
    told.ids = [entry["bytes"][0] if entry["bytes"] else END for entry in entries]
    assert [entry["logprob"] for entry in entries] == oracle(want, told.ids), (want, told)


def oracle(want: Want, ids: list[int]) -> list[float]:
    """How likely the model finds each of `ids` after the prompt and those before it."""
    tokens = [*want.prompt.encode(), *ids]
    first = len(tokens) - len(ids)
    return [dict(likely(tokens[:place], 256))[tokens[place]] for place in range(first, len(tokens))]


class Completions(Sent):
    path, name = "/v1/completions", "completions"

    def shape(self, rng: random.Random, words: list[str], want: Want) -> None:
        count, self.copies = rng.choice((1, 1, 2, 3)), rng.choice((1, 1, 2))
        self.prompts = [prompt_of(each) for each in words[:count]]
        self.wants = [
            copy
            for prompt in self.prompts
            for copy in copies(Want(prompt, want.seed, want.limit, want.stop), self.copies)
        ]
        self.counted = sum(len(prompt.encode()) for prompt in self.prompts)
        self.echo = rng.random() < 0.3
        self.as_ids = rng.random() < 0.4

    def body(self, want: Want) -> dict[str, Any]:
        prompts: list[Any] = [list(p.encode()) for p in self.prompts] if self.as_ids else self.prompts
        return {
            "model": "fake",
            "prompt": prompts if len(prompts) > 1 else prompts[0],
            "max_tokens": want.limit,
            "seed": want.seed,
            "stop": list(want.stop),
            "n": self.copies,
            "echo": self.echo,
            "stream": self.streamed,
            **({"stream_options": {"include_usage": True}} if self.streamed else {}),
        }

    def read(self) -> tuple[list[Told], Counted | None]:
        told = [Told() for _ in self.wants]
        counted = None
        if (whole := self.whole) is not None:
            Completion.model_validate_json(json.dumps(whole), strict=True)
            assert [choice["index"] for choice in whole["choices"]] == list(range(len(told)))
            for each, choice in zip(told, whole["choices"], strict=True):
                each.text, each.why = choice["text"], choice["finish_reason"]
            counted = usage_of(whole["usage"])
        elif self.streamed:
            events = self.events()
            assert len({event["id"] for event in events}) <= 1
            for event in events:
                assert counted is None, "the usage is the last"
                if not event["choices"]:
                    counted = usage_of(event["usage"])
                for choice in event["choices"]:
                    each = told[choice["index"]]
                    assert each.why is None, "nothing follows the end of an answer"
                    each.text += choice["text"]
                    each.why = choice["finish_reason"]
        if self.echo:
            for want, each in zip(self.wants, told, strict=True):
                assert each.text.startswith(want.prompt) or (each.text == "" and each.why is None)
                each.text = each.text.removeprefix(want.prompt)
        return told, counted


class Generate(Sent):
    path, name = "/generate", "generate"

    def shape(self, rng: random.Random, words: list[str], want: Want) -> None:
        count = rng.choice((1, 1, 2, 3))
        self.wants = [Want(prompt_of(each), want.seed, want.limit, want.stop) for each in words[:count]]
        self.counted = sum(len(each.prompt.encode()) for each in self.wants)
        self.as_ids = rng.random() < 0.4
        self.logprobs = rng.random() < 0.3
        self.rid = f"rid-{rng.getrandbits(60)}"

    def body(self, want: Want) -> dict[str, Any]:
        prompts: list[Any] = [each.prompt for each in self.wants]
        if self.as_ids:
            prompts = [list(prompt.encode()) for prompt in prompts]
        return {
            "input_ids" if self.as_ids else "text": prompts if len(prompts) > 1 else prompts[0],
            "sampling_params": {
                "max_new_tokens": want.limit,
                "sampling_seed": want.seed,
                "stop": list(want.stop),
            },
            "rid": self.rid,
            "return_logprob": self.logprobs,
            "stream": self.streamed,
        }

    def read(self) -> tuple[list[Told], Counted | None]:
        told = [Told() for _ in self.wants]
        usages: dict[int, Counted] = {}
        whole = self.whole
        answers: list[Any] = [] if whole is None else whole if isinstance(whole, list) else [whole]
        if self.streamed:
            answers = self.events()
        for answer in answers:
            index = answer.get("index", 0)
            each, meta = told[index], answer["meta_info"]
            assert each.why is None, "nothing follows the end of an answer"
            before = each.ids or []
            assert answer["text"].startswith(each.text), "an event holds everything so far"
            assert answer["output_ids"][: len(before)] == before
            each.text, each.ids = answer["text"], answer["output_ids"]
            assert meta["completion_tokens"] == len(each.ids)
            if meta["finish_reason"] is not None:
                kind = meta["finish_reason"]["type"]
                each.why = "cancelled" if kind == "abort" else kind
                usages[index] = Counted(
                    meta["prompt_tokens"], meta["completion_tokens"], meta["cached_tokens"]
                )
            if self.logprobs and each.why is not None:
                values = meta["output_token_logprobs"]
                assert values == [
                    [v, i, None] for v, i in zip(oracle(self.wants[index], each.ids), each.ids, strict=True)
                ]
        if len(usages) < len(told):
            return told, None
        sums = [
            sum(values)
            for values in zip(*[(u.prompt, u.made, u.cached) for u in usages.values()], strict=True)
        ]
        return told, Counted(*sums)


class Messages(Sent):
    path, name = "/v1/messages", "messages"

    def body(self, want: Want) -> dict[str, Any]:
        return {
            "model": "fake",
            "messages": [{"role": "user", "content": self.words}],
            "max_tokens": want.limit,
            "seed": want.seed,
            "stop_sequences": list(want.stop),
            "stream": self.streamed,
        }

    def read(self) -> tuple[list[Told], Counted | None]:
        message = self.whole
        if message is not None:
            check_message(message)
        elif self.streamed and self.fetch.body.endswith(b'{"type":"message_stop"}\n\n'):
            message = check_events(self.fetch.body)
        if message is None:
            events = events_of(self.fetch.body) if self.streamed else []
            assert self.left or not self.fetch.over
            said = [e["delta"]["text"] for e in events if e["type"] == "content_block_delta"]
            return [Told("".join(said))], None
        why = {"max_tokens": "length", "end_turn": "stop", "stop_sequence": "stop"}[message["stop_reason"]]
        assert (message["stop_sequence"] is not None) == (message["stop_reason"] == "stop_sequence")
        usage = message["usage"]
        cached = usage["cache_read_input_tokens"]
        prompt = usage["input_tokens"] + cached + usage["cache_creation_input_tokens"]
        text = "".join(block["text"] for block in message["content"])
        return [Told(text, why)], Counted(prompt, usage["output_tokens"], cached)


class OllamaChat(Sent):
    path, name = "/api/chat", "ollama chat"

    def asked(self) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": self.words}]}

    def said(self, line: dict[str, Any]) -> str:
        ChatResponse.model_validate_json(json.dumps(line), strict=True)
        assert line["message"]["role"] == "assistant"
        return line["message"]["content"]

    def body(self, want: Want) -> dict[str, Any]:
        options = {"num_predict": want.limit, "seed": want.seed, "stop": list(want.stop)}
        return {"model": "fake", "options": options, "stream": self.streamed, **self.asked()}

    def read(self) -> tuple[list[Told], Counted | None]:
        told = Told()
        lines = [self.whole] if self.whole else []
        if self.streamed:
            assert self.fetch.body.endswith(b"\n") or not self.fetch.body, "a line is written whole"
            lines = [json.loads(line) for line in self.fetch.body.decode().splitlines()]
        for line in lines:
            assert told.why is None, "nothing follows the last line"
            told.text += self.said(line)
            if line["done"]:
                told.why = line["done_reason"]
                # Ollama's counts have no word for what was cached.
                return [told], Counted(line["prompt_eval_count"], line["eval_count"], -1)
        assert self.left or not self.fetch.over
        return [told], None


class OllamaGenerate(OllamaChat):
    path, name = "/api/generate", "ollama generate"

    def shape(self, rng: random.Random, words: list[str], want: Want) -> None:
        self.raw = rng.random() < 0.4

    def asked(self) -> dict[str, Any]:
        return {"prompt": prompt_of(self.words), "raw": True} if self.raw else {"prompt": self.words}

    def said(self, line: dict[str, Any]) -> str:
        GenerateResponse.model_validate_json(json.dumps(line), strict=True)
        return line["response"]


def of_response(final: dict[str, Any]) -> tuple[Told, Counted]:
    """What a response that is over says."""
    check_response(final)
    text = "".join(part["text"] for item in final["output"] for part in item["content"])
    details = final["incomplete_details"] or {}
    assert final["status"] in ("completed", "incomplete", "cancelled"), final
    why = {"completed": "stop", "cancelled": "cancelled"}.get(final["status"])
    why = why or {"max_output_tokens": "length", "steered": "cancelled"}[details["reason"]]
    usage = final["usage"]
    counted = Counted(
        usage["input_tokens"], usage["output_tokens"], usage["input_tokens_details"]["cached_tokens"]
    )
    return Told(text, why), counted


class Responses(Sent):
    path, name = "/v1/responses", "responses"

    def shape(self, rng: random.Random, words: list[str], want: Want) -> None:
        self.background = rng.random() < 0.4

    def body(self, want: Want) -> dict[str, Any]:
        return {
            "model": "fake",
            "input": self.words,
            "max_output_tokens": want.limit,
            "seed": want.seed,
            "stop": list(want.stop),
            "stream": self.streamed,
            "background": self.background,
        }

    @property
    def raws(self) -> list[str]:
        return [
            line.removeprefix("data: ")
            for line in self.fetch.body.decode().split("\n")
            if line.startswith("data: {")
        ]

    @property
    def id(self) -> str | None:
        """Its id, once it was told."""
        if self.streamed:
            return json.loads(self.raws[0])["response"]["id"] if self.raws else None
        return self.fetch.json["id"] if self.fetch.status == 200 else None

    def read(self) -> tuple[list[Told], Counted | None]:
        final = None
        if self.streamed:
            raws = self.raws
            events = [check_event(raw) for raw in raws]
            assert [event["sequence_number"] for event in events] == list(range(len(events)))
            if events and events[-1]["type"] in TERMINAL:
                check_sequence(raws)
                final = events[-1]["response"]
            elif not self.background:
                assert self.left or not self.fetch.over
                deltas = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
                return [Told("".join(deltas))], None
        elif self.fetch.status:
            assert self.fetch.status == 200, self.fetch.body
            final = None if self.background else self.fetch.json
        if self.background and self.id is not None:
            reply = self.bench.fetch(f"/v1/responses/{self.id}", tenant=self.tenant)
            assert reply.status == 200 and (final is None or reply.json == final), (
                "who asks later hears the same"
            )
            final = reply.json
        if final is None:
            return [Told()], None
        told, counted = of_response(final)
        return [told], counted


FACES: tuple[type[Sent], ...] = (
    Chat, Completions, Generate, Messages, OllamaChat, OllamaGenerate, Responses,
)  # fmt: skip
