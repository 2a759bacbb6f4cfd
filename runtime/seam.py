"""Where an answer goes on with the last message: marked before the template runs, cut after it. Knows no tokens.

A template closes every turn that it writes, and may trim what stands in it. So the text that is to be continued
gets a mark behind it, the template runs as for any conversation, and all from the mark on is cut away.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from headrace.runtime.ask import Message
from headrace.runtime.parsers.splitter import ReasoningMarks


class SeamLost(Exception):
    """The template does not write this message's text once and as it is."""


class Seam:
    """The end of `message`: of its text, or of its reasoning where it holds nothing else.

    in_reasoning: the latter. Nobody can write the mark, because nobody can guess it."""

    def __init__(self, message: Message) -> None:
        self.in_reasoning = bool(message.reasoning) and not message.content and not message.pictures
        self._text = message.content
        # Two noncharacters, which no template trims or escapes, and a space, which shows if it trims.
        self._mark = f"\ufdd3{secrets.token_hex(8)}\ufdd4"

    def marked(self, turn: Mapping[str, Any]) -> dict[str, Any]:
        """`turn`, which describes the message for a template, with the mark."""
        mark = self._mark + " "
        if self.in_reasoning:
            return {**turn, "reasoning_content": turn["reasoning_content"] + mark}
        content = turn["content"]
        if isinstance(content, str):
            return {**turn, "content": content + mark}
        if content[-1]["type"] != "text":
            return {**turn, "content": [*content, {"type": "text", "text": mark}]}
        return {**turn, "content": [*content[:-1], {**content[-1], "text": content[-1]["text"] + mark}]}

    def cut(self, rendered: str) -> str:
        """`rendered` up to the mark, origins kept (see Woven). A template that trims its messages loses the white
        space in front of the mark too, as transformers has it. Raises SeamLost."""
        at = rendered.find(self._mark)
        if at < 0 or rendered.find(self._mark, at + 1) >= 0:
            raise SeamLost
        kept = rendered[:at]
        trimmed = not rendered.startswith(" ", at + len(self._mark))
        return kept.rstrip() if trimmed else kept

    def thinking(self, marks: ReasoningMarks | None) -> bool:
        """The model is reasoning at the seam: the message holds reasoning alone, or a text that begins one."""
        if marks is None:
            return False
        return self.in_reasoning or self._text.rfind(marks.begin) > self._text.rfind(marks.end)
