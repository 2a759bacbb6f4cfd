"""Bytes as tokens: a Prompter that needs no model folder. Token i is byte i; the fake engine's width is 256."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from typing import Any

from headrace.runtime.grammar import GrammarCompiler, grammar_of
from headrace.runtime.interface import Ask, Message, ModelCard, Prompt, TextSplitter
from headrace.runtime.parsers.families import REASONING, TOOLS, AnswerForm
from headrace.runtime.refusal import Refusal
from headrace.runtime.typed import WholePrompt

CARD = ModelCard(
    id="fake", architecture="Fake", parameters=0, dtype="none", context_len=4096, vocab_size=256, created=0
)


class ByteCutter:
    """Bytes in, characters out; holds back what could begin a stop string."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.stops = stops
        self.matched: str | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def push(self, token: int) -> str:
        return self._cut(self._decoder.decode(bytes([token])), final=False)

    def finish(self) -> str:
        if self.matched is not None:
            return ""
        return self._cut(self._decoder.decode(b"", True), final=True)

    def _cut(self, text: str, *, final: bool) -> str:
        assert self.matched is None
        self._held += text
        hits = [(self._held.find(stop), stop) for stop in self.stops if stop in self._held]
        if hits:
            at, self.matched = min(hits)
            out, self._held = self._held[:at], ""
            return out
        keep = 0
        if not final:
            for stop in self.stops:
                for size in range(min(len(stop) - 1, len(self._held)), 0, -1):
                    if stop.startswith(self._held[-size:]):
                        keep = max(keep, size)
                        break
        cut = len(self._held) - keep
        out, self._held = self._held[:cut], self._held[cut:]
        return out


class BytePrompter:
    """Messages become `role: content` lines; nothing is special, nothing ends an answer but its length.

    tools, reasoning: the family (see parsers.families) whose calls and reasoning are told apart in the answer.
    In the prompt each tool is a line of its own."""

    embedding_rows = 256
    logits_width = 256

    def __init__(
        self,
        eos_ids: frozenset[int] = frozenset(),
        defaults: Mapping[str, Any] | None = None,
        sees: bool = False,
        tools: str | None = None,
        reasoning: str | None = None,
    ) -> None:
        self.eos_ids = eos_ids
        self.defaults = defaults or {}
        self.sees = sees
        self.form = AnswerForm(TOOLS.get(tools or ""), REASONING.get(reasoning or ""))

    def prepare(self, ask: Ask) -> Prompt:
        if ask.tools and self.form.tools is None:
            raise Refusal("unsupported_parameter", "this model takes no tools", ask.wire_name("tools"))
        grammar = None
        if ask.guided:
            form = self._form_of(ask)
            grammar = grammar_of(ask, form, self.eos_ids, self._compiler, thinking=False)
        if ask.messages is not None:
            for message in ask.messages:
                if message.pictures and not self.sees:
                    name = message.pictures[0].name
                    raise Refusal("invalid_value", "this model takes no pictures: it reads text alone", name)
            lines = [f"offers {tool.name}\n" for tool in ask.tools if ask.tool_choice.mode != "none"]
            lines += [_line(message) for message in ask.messages]
            if ask.ending == "open":
                lines[-1] = lines[-1].removesuffix("\n")
            elif ask.ending == "answer":
                lines.append("assistant: ")
            return Prompt(tuple("".join(lines).encode()), grammar=grammar)
        if isinstance(ask.prompt, str):
            if not ask.prompt:
                raise Refusal("invalid_value", "the prompt is empty", ask.wire_name("prompt"))
            return Prompt(tuple(ask.prompt.encode()), grammar=grammar)
        assert ask.prompt is not None
        if not ask.prompt:
            raise Refusal("invalid_value", "the prompt is empty", ask.wire_name("prompt"))
        for token in ask.prompt:
            if not 0 <= token < self.embedding_rows:
                raise Refusal("invalid_value", "token ids lie in [0, 256)", ask.wire_name("prompt"))
        return Prompt(tuple(ask.prompt), grammar=grammar)

    def typed(self, ask: Ask) -> WholePrompt:
        return WholePrompt(self, ask)

    def _form_of(self, ask: Ask) -> AnswerForm:
        if ask.messages is None:
            return AnswerForm()
        return self.form.past_reasoning if ask.ending == "open" else self.form

    def _compiler(self) -> GrammarCompiler:
        raw = [bytes([each]) for each in range(256)]
        return GrammarCompiler(raw, self.eos_ids, lambda text: list(text.encode()))

    def cutter(self, ask: Ask) -> ByteCutter:
        return ByteCutter(ask.stop)

    def splitter(self, ask: Ask, prompt: Prompt) -> TextSplitter | None:
        if ask.messages is None:
            return None
        tools = {tool.name: tool.parameters for tool in ask.callable_tools}
        return self._form_of(ask).splitter(
            tools, single=not ask.tool_choice.parallel, thinking=prompt.thinking
        )

    @property
    def abilities(self) -> frozenset[str]:
        return self.form.abilities | ({"vision"} if self.sees else frozenset())

    def tokenize(self, text: str) -> list[int]:
        return list(text.encode())

    def detokenize(self, ids: Sequence[int], special: bool = False) -> str:
        spelled = [self.spell(token) for token in ids]
        parts = [name.encode() if raw is None and special else raw or b"" for name, raw in spelled]
        return b"".join(parts).decode("utf-8", "replace")

    def spell(self, token: int) -> tuple[str, bytes | None]:
        raw = bytes([token])
        if token in self.eos_ids:
            return f"<end {token}>", None
        return raw.decode("utf-8", "replace"), raw

    def about(self) -> Mapping[str, Any]:
        return {"tokenizer_class": "Bytes", "eos_token": "<end>"}


def spelled(message: Message) -> str:
    """The content with every picture as a word of its own, so that a lost or moved one changes the answer."""
    text = message.content
    for picture in reversed(message.pictures):
        size = "small" if picture.small else "whole"
        text = f"{text[: picture.at]}[{size} picture of {len(picture.source)}]{text[picture.at :]}"
    return text


def _line(message: Message) -> str:
    calls = "".join(f" [{call.name} {call.arguments}]" for call in message.calls)
    answers = f" of {message.call_id}" if message.call_id is not None else ""
    return f"{message.role}{answers}: {spelled(message)}{calls}\n"


def letters(tokens: list[int], seed: int, width: int) -> int:
    """A `choose` for FakeEngine whose text is readable: lower-case words that depend on all tokens and the seed."""
    state = seed & 0xFFFFFFFF
    for token in tokens:
        state = (state * 1103515245 + token + 12345) & 0x7FFFFFFF
    return b"abcdefghijklmnopqrstuvwxyz      "[state >> 16 & 31]
