"""The decode wrapper: what msgspec lets through or throws, made into one kind of error with short words."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta, Raw

from headrace.server.protocol.codec import (
    FREE_FORM_BYTES,
    FREE_FORM_DEPTH,
    SEPARATORS,
    compact,
    decode,
    encode,
    free_form,
    split,
    string,
)
from headrace.server.protocol.errors import STATUS, WireError


class Inner(msgspec.Struct):
    name: str
    size: Annotated[int, Meta(ge=0, le=9)] | None = None


class Text(msgspec.Struct, tag_field="kind", tag="text"):
    text: str


class Image(msgspec.Struct, tag_field="kind", tag="image"):
    url: str


class Closed(msgspec.Struct, forbid_unknown_fields=True):
    a: bool | None = None


class Outer(msgspec.Struct):
    need: str
    inner: Inner | None = None
    parts: str | Annotated[list[Text | Image], Meta(max_length=3)] | None = None
    many: Annotated[list[Inner], Meta(max_length=3)] | None = None
    free: Raw = Raw(b"null")
    closed: Closed | None = None
    number: Annotated[float, Meta(ge=0, le=2)] | None = None


def fails(body: bytes | str, **options: bool) -> tuple[str, str | None]:
    with pytest.raises(WireError) as caught:
        decode(body, Outer, **options)
    assert len(caught.value.message) < 600
    assert 400 <= caught.value.status < 500
    return caught.value.code, caught.value.param


def deep(count: int, key: str = "free") -> bytes:
    return b'{"need":"x","' + key.encode() + b'":' + b"[" * count + b"]" * count + b"}"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", ("invalid_json", None)),
        (b" ", ("invalid_json", None)),
        (b"null", ("invalid_json", None)),
        (b'"x"', ("invalid_json", None)),
        (b"[]", ("invalid_json", None)),
        (b"{", ("invalid_json", None)),
        (b'{"need":"x"} x', ("invalid_json", None)),
        (b'\xef\xbb\xbf{"need":"x"}', ("invalid_json", None)),
        (b'{"need":"\xff"}', ("invalid_json", None)),
        (b'{"need":"x","zork":"\xff"}', ("invalid_json", None)),
        (b'{"\xff":1}', ("invalid_json", None)),
        (b'{"need":"\\ud800"}', ("invalid_json", None)),
        (b'{"need":"x","number":NaN}', ("invalid_json", None)),
        (b'{"need":"x","number":Infinity}', ("invalid_json", None)),
        (b"{}", ("missing_required_parameter", "need")),
        (b'{"need":null}', ("invalid_value", "need")),
        (b'{"need":"x","number":1e999}', ("invalid_value", "number")),
        (b'{"need":"x","number":' + b"9" * 400 + b"}", ("invalid_value", "number")),
        (b'{"need":"x","number":"1"}', ("invalid_value", "number")),
        (b'{"need":"x","number":true}', ("invalid_value", "number")),
        (b'{"need":"x","inner":{}}', ("missing_required_parameter", "inner.name")),
        (b'{"need":"x","inner":{"name":"a","size":10}}', ("invalid_value", "inner.size")),
        (b'{"need":"x","inner":{"name":"a","size":1.0}}', ("invalid_value", "inner.size")),
        (b'{"need":"x","many":[{"name":"a"},{"name":5}]}', ("invalid_value", "many[1].name")),
        (b'{"need":"x","many":[{},{},{},{}]}', ("missing_required_parameter", "many[0].name")),
        (b'{"need":"x","parts":[{"kind":"zork"}]}', ("invalid_value", "parts[0].kind")),
        (b'{"need":"x","parts":[{}]}', ("missing_required_parameter", "parts[0].kind")),
        (b'{"need":"x","closed":{"b":1}}', ("unknown_parameter", "closed.b")),
    ],
)
def test_what_is_wrong_is_named(body: bytes, expected: tuple[str, str | None]) -> None:
    assert fails(body) == expected
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return
    assert fails(text) == expected, "a text message is judged like a body"


@pytest.mark.parametrize("key", ["free", "zork"])
def test_nesting_is_bounded(key: str) -> None:
    decode(deep(FREE_FORM_DEPTH, key), Outer)
    for count in (FREE_FORM_DEPTH + 1, 100):
        assert fails(deep(count, key)) == ("invalid_value", key)
    for count in (1000, 100_000):
        assert fails(deep(count, key))[0] == "invalid_value"
        assert fails(deep(count, "need"))[0] == "invalid_value"
    assert fails(b'{"a":' * 100_000)[0] in ("invalid_value", "invalid_json")
    assert fails(b"[" * 100_000)[0] in ("invalid_value", "invalid_json")


def test_brackets_in_text_are_not_nesting() -> None:
    body = encode({"need": "x", "free": ["[[[" * 100 + '"' + "\\" + "{{{" * 100] * 20})
    decode(body, Outer)
    mixed = b'{"need":"x","free":[' + b",".join([b'{"a":[1]}'] * 100) + b"]}"
    decode(mixed, Outer)


@pytest.mark.parametrize("key", ["free", "zork"])
def test_free_form_fields_are_bounded_in_size(key: str) -> None:
    fits = b'{"need":"x","%s":"' % key.encode() + b"a" * (FREE_FORM_BYTES - 2) + b'"}'
    decode(fits, Outer)
    assert fails(fits.replace(b"aa", b"aaa", 1)) == ("invalid_value", key)


def test_a_small_body_cannot_become_a_large_heap() -> None:
    keys = b",".join(b'"%d":1' % i for i in range(SEPARATORS // 2 - 2))
    assert decode(b'{"need":"x",' + keys + b"}", Outer).value.need == "x"
    for bomb in (
        b'{"need":"x",' + b",".join(b'"%d":1' % i for i in range(SEPARATORS)) + b"}",
        b'{"need":"x","many":[' + b",".join([b'{"name":""}'] * SEPARATORS) + b"]}",
        b'{"need":"x","free":[' + b"1," * (SEPARATORS + 1) + b"1]}",
        b'{"need":"' + b"," * SEPARATORS + b'","free":[' + b'"",' * (SEPARATORS + 1) + b'""]}',
    ):
        assert fails(bomb) == ("invalid_value", None)
    text = encode({"need": ',:"\\' * SEPARATORS * 2})
    assert len(decode(text, Outer).value.need) == SEPARATORS * 8, "separators in text do not count"
    # Unfinished strings and backslashes: one pass, whatever is in them.
    for tail in (b'"\\', b'\\"' * SEPARATORS, b'"' + b'\\"' * SEPARATORS * 3, b'"a,' * SEPARATORS * 3):
        assert fails(b'{"need":"x","a":' + tail + b",:" * SEPARATORS)[0] in ("invalid_json", "invalid_value")


def test_the_most_entries_that_pass_pass_with_any_text_in_them() -> None:
    """Strings are counted too, as a shortcut: it must never refuse what the rule allows."""
    entries = SEPARATORS - 3  # behind the separators of `need` and `free`
    for item in (b'","', b'""', b'":\\",:"', b'["[,]"]'):
        body = b'{"need":"' + b"," * SEPARATORS + b'","free":[%s]}' % b",".join([item] * entries)
        assert len(split(body)) == 2
        with pytest.raises(WireError) as caught:
            split(body.replace(b'"free":[', b'"free":[1,1,'))
        assert caught.value.code == "invalid_value"


def lines_run(judge: Callable[[], object]) -> int:
    """How many lines of the codec `judge` runs: its work outside of C."""
    count = 0

    def tracer(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal count
        if frame.f_code.co_filename != split.__code__.co_filename:
            return None  # a collection of garbage may call others' code at any time
        count += event == "line"
        return tracer

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        judge()
    except WireError:
        pass
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize(
    ("start", "piece", "end"),
    [
        (b'{"a":"', b'""', b""),  # no JSON: what one small message once stopped every stream for
        (b'{"a":"', b'\\"', b'"}'),
        (b'{"a":"","b":[', b'"",', b'""]}'),
        (b'{"a":[', b'"",', b'""]}'),
        (b'{"a":[', b"1,", b"1]}"),
        (b'{"a":[', b"[[]],", b"[]]}"),
        (b'{"a":[', b'{"":""},', b"{}]}"),
        (b"{", b'"":"",', b'"":""}'),
    ],
)
def test_no_body_costs_python_by_its_size(start: bytes, piece: bytes, end: bytes) -> None:
    """The loop's thread runs equally many lines for a body four times as large, whatever is in it."""
    text = start.replace(
        b'"', b'"' + b"," * SEPARATORS * 2, 1
    )  # separators in text: a count of bytes is not enough
    small, large = (text + piece * count + end for count in (SEPARATORS, SEPARATORS * 4))
    assert 0 < lines_run(lambda: split(large)) == lines_run(lambda: split(small)) < 50


@pytest.mark.parametrize("piece", [b'"[",', b"[]," * 2, b"[" * 31 + b"]" * 31 + b","])
def test_nesting_is_judged_without_python_per_bracket(piece: bytes) -> None:
    small, large = (Raw(b"[" + piece * (size // len(piece)) + b"0]") for size in (2000, FREE_FORM_BYTES - 2))
    assert 0 < lines_run(lambda: free_form(large, "p")) == lines_run(lambda: free_form(small, "p")) < 200


def test_unknown_fields_are_named_at_every_level() -> None:
    body = {
        "need": "x",
        "zork": 1,
        "inner": {"name": "a", "zork": 1},
        "many": [{"name": "a"}, {"name": "b", "zork": {"deep": 1}}],
        "parts": [{"kind": "text", "text": "a", "url": 1}, {"kind": "image", "url": "b", "text": 2}],
        "free": {"anything": {"goes": 1}},
    }
    ignored = decode(encode(body), Outer).ignored
    assert set(ignored) == {"zork", "inner.zork", "many[1].zork", "parts[0].url", "parts[1].text"}
    assert fails(encode(body), strict=True)[0] == "unknown_parameter"
    assert decode(b'{"need":"x","parts":"plain"}', Outer).ignored == ()
    assert decode(b'{"need":"x","parts":null,"inner":null}', Outer).ignored == ()


def test_native_fields_are_strict_always() -> None:
    assert fails(b'{"need":"x","x_zork":1}') == ("unknown_parameter", "x_zork")


def test_client_text_is_cut() -> None:
    name = "n" * 100_000
    decoded = decode(encode({"need": "x", name: 1}), Outer)
    assert len(decoded.ignored[0]) == 200
    code, param = fails(encode({"need": "x", name: 1}), strict=True)
    assert code == "unknown_parameter" and param is not None and len(param) == 200
    code, param = fails(encode({"need": "x", "closed": {name: 1}}))
    assert code == "unknown_parameter" and param is not None and len(param) == 200
    assert fails(encode({"need": "x", "parts": [{"kind": name}]})) == ("invalid_value", "parts[0].kind")


def test_the_last_of_two_equal_keys_wins_everywhere() -> None:
    decoded = decode(b'{"need":"first","need":"last","zork":1,"zork":2}', Outer)
    assert decoded.value.need == "last" and decoded.ignored == ("zork",)
    assert string(split(b'{"need":"first","need":"last"}')["need"]) == "last"
    assert fails(b'{"need":"x","free":1,"free":' + b"[" * 40 + b"]" * 40 + b"}") == ("invalid_value", "free")


def test_zero_like_numbers_pass_and_are_finite() -> None:
    for text in (b"-0.0", b"1e-320", b"5e-324", b"0", b"2"):
        value = decode(b'{"need":"x","number":' + text + b"}", Outer).value.number
        assert value is not None and 0 <= value <= 2


def test_small_pieces() -> None:
    assert compact(Raw(b' { "a" : 1 } ')) == '{"a":1}'
    assert compact(Raw(b"x" * 100)) == "…"
    assert compact(Raw(b"[1,")) == "…"
    assert string(None) is None and string(Raw(b"5")) is None and string(Raw(b'"a"')) == "a"
    assert free_form(Raw(b'{"a":[1]}'), "p") == {"a": [1]}
    with pytest.raises(WireError):
        free_form(Raw(b"[" * 40 + b"]" * 40), "p")


def test_every_code_has_a_status_and_a_shape() -> None:
    for code, status in STATUS.items():
        error = WireError(code, "why", "field", retry_after=1.5 if status in (429, 503) else None)
        body = error.fields().nested()
        assert body["error"]["code"] == code and body["error"]["param"] == "field"
        kind = (
            "server_error"
            if status >= 500
            else "rate_limit_error"
            if status == 429
            else "invalid_request_error"
        )
        assert body["error"]["type"] == kind
        if status in (429, 503):
            assert error.headers() == {"retry-after-ms": "1500", "retry-after": "2"}
    assert WireError("timeout", "too long").headers() == {"x-should-retry": "false"}
