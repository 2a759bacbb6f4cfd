"""ENG-11: whatever the tokens, concat(deltas) is the whole text cut at its first stop string."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.runtime.text import Cutter, LeadingSpace, StopString, TokenText

# Ids 0-255 are bytes, then some longer tokens (whole characters, parts of characters, a mixture), then two
# specials.
LONGER = [
    b"hello",
    " 你好".encode(),
    "🎉".encode()[:3],
    "é".encode()[1:] + b"x",
    b"\xff\xfe",
    b"\n\n",
    b"aab",
    b"  ",
]
RAW = [*(bytes([byte]) for byte in range(256)), *LONGER, b"", b""]
PLAIN = TokenText(RAW)
STRIPPING = TokenText(RAW, LeadingSpace(strip=1))
BARE = TokenText(RAW, LeadingSpace(bare_first=True), {32: b"", RAW.index(b"  "): b""})

FAST = settings(max_examples=400, deadline=None, derandomize=True)


def whole_text(source: TokenText, ids: list[int], continues: bool) -> str:
    """The definition, in one go: join, decode, strip."""
    raw = [RAW[token] for token in ids]
    if source.leading.bare_first and not continues:
        first = next((at for at, token in enumerate(ids) if RAW[token]), None)
        if first is not None:
            raw[first] = source.firsts.get(ids[first], raw[first])
    text = b"".join(raw).decode(errors="replace")
    for _ in range(0 if continues else source.leading.strip):
        text = text.removeprefix(source.leading.mark)
    return text


def first_stop(text: str, stops: list[str]) -> tuple[int, str | None]:
    """(where to cut, which): the stop string complete first, the longest of those complete together."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            best = max(found, key=len)
            return end - len(best), best
    return len(text), None


def run(
    source: TokenText, ids: list[int], stops: list[str], continues: bool = False
) -> tuple[list[str], Cutter]:
    cutter = Cutter(source, stops, continues)
    deltas = [cutter.push(token) for token in ids]
    deltas.append(cutter.finish())
    return deltas, cutter


def in_tokens(draw: st.DrawFn, data: bytes) -> list[int]:
    """`data` as ids: mostly bytes, sometimes a longer token where one fits, specials strewn in."""
    ids: list[int] = []
    at = 0
    while at < len(data):
        fitting = [256 + i for i, each in enumerate(LONGER) if data.startswith(each, at)]
        token = draw(st.sampled_from([data[at], *fitting, len(RAW) - 1]))
        ids.append(token)
        at += len(RAW[token])
    return ids


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], list[str]]:
    text = draw(
        st.text(st.characters(codec="utf-8"), max_size=24)
        | st.text("ab é你🎉\n", max_size=40)
        | st.text("ab", max_size=40)
    )
    ids = in_tokens(draw, text.encode())
    stops = draw(st.lists(st.text(st.sampled_from("ab é你🎉\n"), min_size=1, max_size=12), max_size=4))
    if text:
        for _ in range(draw(st.integers(0, 2))):
            start = draw(st.integers(0, len(text) - 1))
            stops.append(text[start : start + draw(st.integers(1, 12))])
    return ids, stops


@FAST
@given(cases(), st.booleans(), st.sampled_from([PLAIN, STRIPPING, BARE]))
def test_deltas_join_to_the_text_cut_at_the_first_stop(
    case: tuple[list[int], list[str]], continues: bool, source: TokenText
) -> None:
    ids, stops = case
    text = whole_text(source, ids, continues)
    cut, which = first_stop(text, stops)
    deltas, cutter = run(source, ids, stops, continues)
    assert "".join(deltas) == text[:cut]
    assert cutter.matched == which
    assert "\ufffd" not in "".join(deltas) or "\ufffd" in text


@FAST
@given(st.lists(st.integers(0, len(RAW) - 1), max_size=40), st.sampled_from([PLAIN, STRIPPING, BARE]))
def test_any_ids_at_all(ids: list[int], source: TokenText) -> None:
    """Broken bytes give U+FFFD exactly where decoding everything at once gives it."""
    deltas, _ = run(source, ids, [])
    assert "".join(deltas) == whole_text(source, ids, False) == source.decode(ids)
    assert source.decode(ids, continues=True) == whole_text(source, ids, True)


@FAST
@given(cases(), st.integers(0, 30), st.sampled_from(["length", "cancel"]))
def test_what_was_shown_stays_true(case: tuple[list[int], list[str]], length: int, end: str) -> None:
    """Text shown is always a prefix of what is shown later, and no stop string has begun in it."""
    ids, stops = case
    cutter = Cutter(PLAIN, stops)
    shown = ""
    for at, token in enumerate(ids[:length]):
        was_matched = cutter.matched
        delta = cutter.push(token)
        assert was_matched is None or delta == ""
        shown += delta
        so_far = whole_text(PLAIN, ids[: at + 1], False)
        _, which = first_stop(so_far.rstrip("\ufffd"), stops)
        assert so_far[: len(shown)] == shown
        if which is None and "\ufffd" not in so_far:
            held = so_far[len(shown) :]
            assert not held or any(stop.startswith(held) and stop != held for stop in stops), (
                "held back too much"
            )
            longer = [so_far[-k:] for k in range(len(held) + 1, len(so_far) + 1)]
            assert not any(
                stop.startswith(end) for end in longer for stop in stops if len(end) < len(stop)
            ), "the beginning of a stop string was shown"
    if end == "length":
        shown += cutter.finish()
        text = whole_text(PLAIN, ids[:length], False)
        assert shown == text[: first_stop(text, stops)[0]]


@pytest.mark.parametrize("stop", ["a", "aa", "abab", "ababc", "aabaaab", "你🎉你"])
def test_failure_table(stop: str) -> None:
    table = StopString(stop).after
    for k in range(2, len(stop) + 1):
        expected = max(j for j in range(k) if stop[:k].endswith(stop[:j]))
        assert table[k] == expected


def test_known_stop_cases() -> None:
    def cut(text: str, *stops: str) -> tuple[str, Any]:
        deltas, cutter = run(PLAIN, list(text.encode()), list(stops))
        return "".join(deltas), cutter.matched

    assert cut("xaab", "ab") == ("xa", "ab")
    assert cut("ababac", "abac") == ("ab", "abac")
    assert cut("abcd", "abcd", "c") == ("ab", "c")  # complete first
    assert cut("xab", "b", "ab") == ("x", "ab")  # complete together: the longer one
    assert cut("abc", "abcd") == ("abc", None)  # released at the end
    assert cut("stop", "s") == ("", "s")
    assert cut("日本", "本") == ("日", "本")
    assert cut("a\ufffd", "\ufffd") == ("a", "\ufffd")


def test_half_a_character_at_the_end_is_told_once() -> None:
    cutter = Cutter(PLAIN, ())
    assert [cutter.push(byte) for byte in "🎉".encode()[:3]] == ["", "", ""]
    assert cutter.finish() == "\ufffd"
    cutter = Cutter(PLAIN, ("\ufffd",))
    cutter.push(0xF0)
    assert cutter.finish() == ""
    assert cutter.matched == "\ufffd"


def test_ids_without_a_token_have_no_text() -> None:
    cutter = Cutter(PLAIN, ())
    assert [cutter.push(token) for token in (104, len(RAW), 1 << 31, -1, 105)] == ["h", "", "", "", "i"]


def test_a_character_in_four_tokens_with_specials_between() -> None:
    cutter = Cutter(PLAIN, ())
    special = len(RAW) - 1
    ids = [token for byte in "🚀".encode() for token in (byte, special)]
    assert "".join(cutter.push(token) for token in ids) == "🚀"


@pytest.mark.parametrize("quiet", range(8))
def test_the_first_tokens_hold_no_stop_string(quiet: int) -> None:
    """min_tokens: a stop string counts only if a later token completes it, and it lies after those tokens."""
    text = TokenText([bytes([i]) for i in range(256)])
    cutter = Cutter(text, ["b"], quiet=quiet)
    said = "".join(cutter.push(ord(char)) for char in "abcabcabc") + cutter.finish()
    at = "abcabcabc".index("b", quiet)
    assert (said, cutter.matched) == ("abcabcabc"[:at], "b")
