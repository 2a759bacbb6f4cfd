"""A fake model whose answers are words and end by themselves, for tests with clients that set no limit."""

from __future__ import annotations

from fake_prompter import letters

END = 10  # newline ends an answer
EOS = frozenset({END})


def until_newline(tokens: list[int], seed: int, width: int) -> int:
    """Words, then a newline after 12 to 27 tokens behind the last mark that an answer begins."""
    start = bytes(tokens).rindex(b": ") + 2
    return END if len(tokens) - start >= 12 + seed % 16 else letters(tokens, seed, width)
