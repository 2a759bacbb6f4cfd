"""docs/fields.md is what the types say, and the types say something about every field and bound."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import msgspec.inspect as shapes
import pytest

from headrace.server.protocol import fields
from headrace.server.protocol.chat import ChatRequest
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.field_table import ENDPOINTS, field_table
from headrace.server.protocol.fields import check_supported, extra_of
from headrace.server.protocol.responses import ResponseRequest, ResponseSteer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "fields.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == field_table(), (
        "run python -P -m headrace.server.protocol.field_table > docs/fields.md"
    )


@pytest.mark.parametrize("type_", [type_ for _, type_ in ENDPOINTS])
def test_every_field_has_a_treatment(type_: type[msgspec.Struct]) -> None:
    for field in shapes.type_info(type_).fields:  # type: ignore[attr-defined]
        treatment = extra_of(field.type).get("treatment")
        assert treatment in ("honoured", "accepted, no effect", "refused"), field.name


def unbounded(node: shapes.Type, path: str) -> Iterator[str]:
    """Numbers without both bounds, lists and dicts without a length, below `node`."""
    match node:
        case shapes.Metadata():
            yield from unbounded(node.type, path)
        case shapes.IntType() | shapes.FloatType():
            if node.le is None or (node.ge is None and node.gt is None):
                yield path
        case shapes.ListType():
            if node.max_length is None:
                yield path
            yield from unbounded(node.item_type, path + "[]")
        case shapes.DictType():
            if node.max_length is None:
                yield path
            yield from unbounded(node.key_type, path + "{key}")
            yield from unbounded(node.value_type, path + "{value}")
        case shapes.UnionType():
            for member in node.types:
                yield from unbounded(member, path)
        case shapes.StructType():
            for field in node.fields:
                yield from unbounded(field.type, f"{path}.{field.name}")
        case shapes.AnyType():
            yield path


@pytest.mark.parametrize("type_", [*(type_ for _, type_ in ENDPOINTS), ResponseSteer])
def test_everything_is_bounded(type_: type[msgspec.Struct]) -> None:
    assert list(unbounded(shapes.type_info(type_), type_.__name__)) == []


def test_the_bounds_test_sees_a_missing_bound() -> None:
    class Loose(msgspec.Struct):
        a: int
        b: list[str]
        c: dict[str, float]

    assert len(list(unbounded(shapes.type_info(Loose), "Loose"))) == 4


@pytest.mark.parametrize("type_", [ChatRequest, ResponseRequest])
def test_refused_fields_let_their_neutral_values_pass(type_: type[msgspec.Struct]) -> None:
    base = {"model": "m", "messages": [{"role": "user", "content": "x"}]} if type_ is ChatRequest else {}
    checked = 0
    for field in shapes.type_info(type_).fields:  # type: ignore[attr-defined]
        extra = extra_of(field.type)
        if extra.get("treatment") != "refused":
            continue
        for value in (None, *extra["neutral"]):
            text = (
                "null"
                if value is None
                else value
                if isinstance(value, str)
                else msgspec.json.encode(value).decode()
            )
            if isinstance(value, str) and text[:1] not in '"[{' and not text[:1].isdigit():
                text = f'"{value}"'
            body = (
                msgspec.json.encode(base)[:-1]
                + (b"," if base else b"")
                + f'"{field.name}": {text} }}'.encode()
            )
            check_supported(msgspec.json.decode(body, type=type_))
            checked += 1
        raw = msgspec.Raw(b'{"anything": 1}')
        if isinstance(
            getattr(msgspec.json.decode(msgspec.json.encode(base), type=type_), field.name), msgspec.Raw
        ):
            request = msgspec.json.decode(msgspec.json.encode({**base, field.name: raw}), type=type_)
            with pytest.raises(WireError) as caught:
                check_supported(request)
            assert (caught.value.code, caught.value.param) == ("unsupported_parameter", field.name)
    assert checked >= 8


def test_template_options_are_a_closed_list() -> None:
    assert fields.TemplateOptions.__struct_fields__ == ("enable_thinking", "thinking")
    assert fields.TemplateOptions(enable_thinking=False).given() == {"enable_thinking": False}
