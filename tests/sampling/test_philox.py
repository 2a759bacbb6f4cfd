"""Philox4x32-10 against the published Random123 answers and against a second, slow spelling."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.runtime.philox import philox, row_words, token_words

# From the kat_vectors file of Random123: counter words, key words, answer words.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def spelled_out(counter: list[int], key: list[int]) -> list[int]:
    """The generator with Python integers, one word at a time."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c3 ^ k1, p0 & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, answer: str) -> None:
    c = [int(word, 16) for word in counter.split()]
    k = [int(word, 16) for word in key.split()]
    front, back = philox(
        k[0] | k[1] << 32, np.array([c[0] << 32 | c[1]], np.uint64), np.array([c[2] << 32 | c[3]], np.uint64)
    )
    words = [int(front[0]) >> 32, int(front[0]) & 0xFFFFFFFF, int(back[0]) >> 32, int(back[0]) & 0xFFFFFFFF]
    assert " ".join(f"{word:08x}" for word in words) == answer
    assert spelled_out(c, k) == words


@pytest.mark.parametrize("seed", [0, 1, 0xDEADBEEF_01234567, (1 << 64) - 1])
@pytest.mark.parametrize("position", [0, 5, (1 << 32) - 1])
@pytest.mark.parametrize("width", [1, 4, 259, 1027])
def test_words_of_a_row(seed: int, position: int, width: int) -> None:
    words = row_words(seed, position, width)
    for token in {0, 1 % width, width // 2, width - 1}:
        expected = spelled_out([token // 4, position, 0, 0], [seed & 0xFFFFFFFF, seed >> 32])[token % 4]
        assert int(words[token]) == expected
    ids = np.arange(width, dtype=np.int64)[::-1]
    assert np.array_equal(token_words(seed, position, ids), words[ids])


def test_every_part_of_the_key_and_counter_matters() -> None:
    base = row_words(1, 1, 64)
    for other in (row_words(2, 1, 64), row_words(1 | 1 << 63, 1, 64), row_words(1, 2, 64)):
        assert not np.any(base == other)
