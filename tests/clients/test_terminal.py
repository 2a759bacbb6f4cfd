"""Model output cannot drive the terminal."""

from __future__ import annotations

import pytest

from headrace.clients.terminal import harmless


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain äöü 漢字 👩‍💻\n\ttab", "plain äöü 漢字 👩‍💻\n\ttab"),
        ("\x1b[2J\x1b[H", "␛[2J␛[H"),
        ("\x1b]52;c;ZXZpbA==\x07", "␛]52;c;ZXZpbA==␇"),
        ("\x1bP+q544e\x1b\\", "␛P+q544e␛\\"),
        ("\x9b31mred\x9d0;title\x9c", "�31mred�0;title�"),
        ("honest\rfalse", "honestfalse"),
        ("line\r\nline", "line\nline"),
        ("abc\b\b\bxyz\x7f\x00", "abc␈␈␈xyz␡␀"),
        ("a\u202eevil\u202c\u2066b\u2069", "aevilb"),
        ("a\u2028b\u2029c", "a\nb\nc"),
        ("\ud800", "�"),
    ],
)
def test_what_a_terminal_obeys_is_shown_instead(text: str, shown: str) -> None:
    assert harmless(text) == shown


def test_no_character_that_a_terminal_acts_on_survives_alone() -> None:
    # Character by character, so nothing can be put together from pieces that came in different deltas.
    for code in (*range(0x20), *range(0x7F, 0xA0)):
        left = harmless(chr(code))
        assert left in ("", "\n", "\t") or ord(left) >= 0x2400, hex(code)
