"""Logprobs of tokens in the words of each protocol. Knows how tokens are spelled; knows no request."""

from __future__ import annotations

from collections.abc import Iterable

from headrace.runtime.interface import Ask, Prompter, TokenLogprob, TokenStream
from headrace.server.protocol import logprobs as wire


def chat_logprobs(stream: TokenStream) -> wire.ChatLogprobs:
    """`choices[].logprobs` of a chat completion or chunk: of the tokens taken since the last one."""
    spell = stream.spell
    assert spell is not None, "logprobs name their tokens"
    content = []
    for each in stream.take_logprobs():
        token, raw = spell(each.token)
        top = []
        for rank, value in each.top:
            name, spelled = spell(rank)
            top.append(wire.ChatTopLogprob(name, value, None if spelled is None else list(spelled)))
        content.append(wire.ChatTokenLogprob(token, each.logprob, None if raw is None else list(raw), top))
    return wire.ChatLogprobs(content)


def response_logprobs(
    stream: TokenStream, found: Iterable[TokenLogprob]
) -> tuple[wire.TokenLogprobPart, ...]:
    """`logprobs` of an output_text part, and of its deltas: `found`, of tokens of the stream."""
    spell = stream.spell
    assert spell is not None, "logprobs name their tokens"
    parts = []
    for each in found:
        token, raw = spell(each.token)
        top = []
        for rank, value in each.top:
            name, spelled = spell(rank)
            top.append(wire.TopLogprob(name, list(spelled or b""), value))
        parts.append(wire.TokenLogprobPart(token, list(raw or b""), each.logprob, top))
    return tuple(parts)


def shown(prompter: Prompter, token: int) -> str:
    """One token as completions name it: part of a character by its bytes, so that two of them differ."""
    name, raw = prompter.spell(token)
    if raw is None or "\ufffd" not in name:
        return name
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


class CompletionColumns:
    """`choices[].logprobs` of completions, column by column, as the tokens of one text come.

    `text_offset` says how many characters of the text stand certainly before a token: the second part of a
    character has the offset of the first. It reads the tokens themselves; a stop string cuts the text and not
    the tokens."""

    def __init__(self, prompter: Prompter, *, begins: bool) -> None:
        """begins: the first token begins the text (an echoed prompt); else it goes on after one."""
        self._prompter = prompter
        self._cutter = prompter.cutter(Ask(prompt="" if begins else "."))
        self._offset = 0
        self._clear()

    def _clear(self) -> None:
        self._offsets: list[int] = []
        self._values: list[float | None] = []
        self._tokens: list[str] = []
        self._tops: list[dict[str, float] | None] = []

    def add_unknown(self, token: int) -> None:
        """A token before which nothing stands."""
        self._place(token)
        self._values.append(None)
        self._tops.append(None)

    def add(self, found: TokenLogprob) -> None:
        self._place(found.token)
        self._values.append(found.logprob)
        # Tokens of one spelling share a key: the likelier one has it. What was chosen is always there, with the
        # very float of token_logprobs, if no likelier token looks the same.
        top: dict[str, float] = {}
        for token, value in found.top:
            top.setdefault(shown(self._prompter, token), value)
        top.setdefault(self._tokens[-1], found.logprob)
        self._tops.append(top)

    def _place(self, token: int) -> None:
        self._offsets.append(self._offset)
        self._tokens.append(shown(self._prompter, token))
        self._offset += len(self._cutter.push(token))

    def take(self) -> wire.CompletionLogprobs:
        """Everything added since the last call."""
        taken = wire.CompletionLogprobs(self._offsets, self._values, self._tokens, self._tops)
        self._clear()
        return taken
