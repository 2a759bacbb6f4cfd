"""What the demo model learns from: dialogues, and the single exchanges that most of them are made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from PIL.Image import Image

from headrace.bench.demo.draw import Draw

Call = tuple[str, dict[str, Any]]  # a tool's name and its arguments


@dataclass(frozen=True)
class Exchange:
    """A question and its answer. `accepted`: all answers that are right, where one is drawn of several."""

    ask: str
    answer: str
    brief: str | None = None  # the answer to who wants it brief
    accepted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Message:
    role: str  # system, user, assistant, tool
    text: str
    pictures: tuple[Image, ...] = ()  # before the text
    call: Call | None = None  # after the text

    @property
    def spoken(self) -> str:
        """All that it says, its call included, as the model writes it."""
        parts = [self.text] if self.text else []
        if self.call is not None:
            name, arguments = self.call
            written = json.dumps(arguments, ensure_ascii=False)
            parts.append(f'<tool_call>\n{{"name": "{name}", "arguments": {written}}}\n</tool_call>')
        return "\n".join(parts)


@dataclass
class Dialogue:
    """Messages that end with an assistant's one. Only that last one is scored; all of them are learned."""

    messages: list[Message] = field(default_factory=list)
    tools: tuple[dict[str, Any], ...] = ()
    accepted: tuple[str, ...] = ()  # right last answers besides the one written
    right: Callable[[str], bool] | None = None  # where answers cannot be listed

    def add(self, exchange: Exchange, brief: bool = False) -> None:
        """Append an exchange; it is what counts if it stays the last one."""
        short = exchange.brief if brief else None
        answer = exchange.answer if short is None else short
        self.messages += [Message("user", exchange.ask), Message("assistant", answer)]
        self.accepted = exchange.accepted if answer == exchange.answer else ()

    @property
    def expected(self) -> str:
        """The last message, as it is written."""
        return self.messages[-1].spoken

    def score(self, answer: str) -> bool:
        """True if `answer` is right as the last message."""
        if self.right is not None:
            return self.right(answer)
        return answer == self.expected or answer in self.accepted


Maker = Callable[[Draw], Exchange]
Scene = Callable[[Draw], Dialogue]
