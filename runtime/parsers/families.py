"""Which parser a checkpoint needs: read from its chat template, or chosen by a flag."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from headrace.runtime.parsers import hermes, llama3, mistral, qwen_coder
from headrace.runtime.parsers.incoming import CallRules
from headrace.runtime.parsers.splitter import CallReader, ReasoningMarks, Splitter

THINK = ReasoningMarks("<think>", "</think>")
BRACKET_THINK = ReasoningMarks("[THINK]", "[/THINK]")


# (name → its arguments as a value of a rule, several calls, the chat template) → rules for `calls`
CallGrammar = Callable[[Mapping[str, str], bool, str], list[str]]


@dataclass(frozen=True, slots=True)
class ToolFamily:
    """One way of writing calls. marks: strings that must be seen in the text even if they are special tokens.

    begin: the mark behind which a call stands, anywhere in an answer; "": calls stand at its beginning alone, where
    `announced`, a regex, tells them from text. plain: values are written as they are, not as JSON."""

    read: CallReader
    marks: tuple[str, ...]
    grammar: CallGrammar
    begin: str
    announced: str = ""
    plain: bool = False


TOOLS = {
    "hermes": ToolFamily(hermes.read, hermes.MARKS, hermes.grammar, hermes.BEGIN),
    "qwen_coder": ToolFamily(
        qwen_coder.read, qwen_coder.MARKS, qwen_coder.grammar, qwen_coder.BEGIN, plain=True
    ),
    "llama3": ToolFamily(llama3.read, llama3.MARKS, llama3.grammar, "", llama3.ANNOUNCED),
    "mistral": ToolFamily(mistral.read, mistral.MARKS, mistral.grammar, mistral.BEGIN),
}
REASONING = {"think": THINK, "mistral": BRACKET_THINK}


def tool_parser(template: str) -> str | None:
    """The name in TOOLS of what `template` teaches its model, or None if it spells no call we know."""
    if "<tool_call>" in template:
        return "qwen_coder" if "<function=" in template else "hermes"
    if "[TOOL_CALLS]" in template:
        return "mistral"
    # Llama 3.1 names the environment in its prompt, 3.2 shows the form of a call; both read back `parameters`.
    if "<|python_tag|>" in template or ("ipython" in template and '"parameters": ' in template):
        return "llama3"
    return None


def reasoning_parser(template: str) -> str | None:
    """The name in REASONING of what `template` knows to be reasoning, or None."""
    for name, marks in REASONING.items():
        if marks.end in template or marks.begin in template:
            return name
    return None


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """How one model writes what is not plain text. None: it has no such thing, or nobody knows how it writes it."""

    tools: ToolFamily | None = None
    reasoning: ReasoningMarks | None = None
    template: str = ""  # the chat template that taught the model

    def splitter(
        self,
        tools: Mapping[str, Mapping[str, Any] | None],
        *,
        single: bool = False,
        thinking: bool = False,
        midway: bool = False,
    ) -> Splitter | None:
        """For one answer. tools: name → schema of what may be called; single, thinking, midway: see Splitter."""
        calls = None if self.tools is None or not tools else (self.tools.read, CallRules(tools, single))
        if calls is None and self.reasoning is None:
            return None
        return Splitter(self.reasoning, thinking, calls, midway=midway)

    @property
    def past_reasoning(self) -> AnswerForm:
        """What is left of it for an answer that goes on with a text: its time to reason is over."""
        return replace(self, reasoning=None)

    @property
    def abilities(self) -> frozenset[str]:
        """What an answer can hold besides text."""
        found = {"tools": self.tools, "thinking": self.reasoning}
        return frozenset(name for name, known in found.items() if known is not None)

    def marks(self, calling: bool) -> frozenset[str]:
        """The strings that a splitter must see. calling: there are tools."""
        seen = set() if self.reasoning is None else {self.reasoning.begin, self.reasoning.end}
        if calling and self.tools is not None:
            seen |= set(self.tools.marks)
        return frozenset(seen)


def answer_form(template: str, tools: str = "auto", reasoning: str = "auto") -> AnswerForm:
    """What a model with this chat template writes. tools, reasoning: names in TOOLS and REASONING, "none", or
    "auto" for what the template spells."""
    tools_name = tool_parser(template) if tools == "auto" else tools
    reasoning_name = reasoning_parser(template) if reasoning == "auto" else reasoning
    return AnswerForm(TOOLS.get(tools_name or ""), REASONING.get(reasoning_name or ""), template)
