"""A fake model whose answers end by themselves: words, then a newline."""

from __future__ import annotations

from fake_prompter import letters

END = 10  # newline ends an answer


def until_newline(tokens: list[int], seed: int, width: int) -> int:
    """Words, then a newline after 12 to 27 tokens of answer."""
    start = bytes(tokens).rindex(b"assistant: ") + 11
    return END if len(tokens) - start >= 12 + seed % 16 else letters(tokens, seed, width)
