"""Streams that answer one prompt and wait for the first of them. Knows asks and prompts; knows no loop."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from headrace.runtime.ask import Ask
from headrace.runtime.stream import TokenStream

if TYPE_CHECKING:
    from headrace.runtime.interface import Prompt


@dataclass(slots=True)
class Siblings:
    """Streams that wait for the first one of their prompt, and what each will answer, once that is prepared."""

    waiting: tuple[tuple[TokenStream, Ask], ...]
    prompts: tuple[Prompt, ...] = ()

    def take(self, prompt: Prompt) -> None:
        """The prompt of the first one: a grammar moves with its answer, so everybody gets his own."""
        own = prompt.grammar
        self.prompts = tuple(
            replace(prompt, grammar=None if own is None else own.copy()) for _ in self.waiting
        )
