"""A fake model that says what a test wants: one scripted answer for each prompt, byte by byte."""

from __future__ import annotations

from collections.abc import Callable

END = 3  # a byte that no answer holds
ANSWER = b"assistant: "


class Script:
    """A `choose` for FakeEngine. reply(prompt) is the answer to a prompt, as BytePrompter writes prompts.

    It goes together with `eos=frozenset({END})`. `prompts`: every prompt it was asked with."""

    def __init__(self, reply: Callable[[str], str]) -> None:
        self.reply = reply
        self.prompts: list[str] = []

    def __call__(self, tokens: list[int], seed: int, width: int) -> int:
        said = bytes(tokens)
        start = said.rindex(ANSWER) + len(ANSWER)
        prompt = said[:start].decode()
        if prompt not in self.prompts[-1:]:
            self.prompts.append(prompt)
        answer = self.reply(prompt).encode()
        assert ANSWER not in answer, "the beginning of the answer could not be found again"
        done = len(said) - start
        return answer[done] if done < len(answer) else END


def always(answer: str) -> Script:
    """The same answer to everything."""
    return Script(lambda prompt: answer)


def call(name: str, arguments: str) -> str:
    """A call as the hermes family writes it."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'
