"""Bytes to typed requests and back: the only place where JSON is decoded. Knows msgspec; knows no endpoint.

Three passes over a request body. The first counts what would become objects, so that a small body cannot
become a large heap; it never leaves C, so that the largest body of any content costs milliseconds of the loop
and not one Python step per string. The second splits the top level into raw values: it names the unknown fields and
bounds the free-form ones (size, nesting) before anything is built from them. The third is the typed decode,
whose bounds live in the types. The last of duplicate keys wins in both decodes, so they cannot disagree.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Generic, TypeVar

import msgspec
import msgspec.inspect as shapes

from headrace.runtime.refusal import shorten
from headrace.server.protocol.errors import WireError

FREE_FORM_BYTES = 256 << 10  # one field without a type of ours (tools, schemas, unknown fields)
FREE_FORM_DEPTH = 32
SEPARATORS = 1 << 16  # commas and colons outside of strings: fields and list entries of one request
TOKEN_IDS = 1 << 19  # list entries of a request that may carry token ids; its fields and strings stay as few
IGNORED_NAMED = 32  # unknown fields named in one reply; more are only counted

T = TypeVar("T")

_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_AT = re.compile(r" - at (?:`key` in )?`\$\.?([^`]*)`\Z", re.DOTALL)
_MISSING = re.compile(r"\AObject missing required field `([^`]*)`\Z", re.DOTALL)
_UNKNOWN = re.compile(r"\AObject contains unknown field `(.*)`\Z", re.DOTALL)
# An unfinished string runs to the end: no position is looked at twice, whatever the bytes are.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
# In JSON every string is a field's name or a value, and every value but one follows a separator of its own or
# is the first of a list that does: with S separators there are at most S + 1 strings.
_STRINGS = SEPARATORS + 1
_SQUARE = bytes.maketrans(b"{}", b"[]")
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))

_top_level = msgspec.json.Decoder(dict[str, msgspec.Raw])
_any_json = msgspec.json.Decoder(msgspec.Raw)  # reads over a value and builds nothing
_array = msgspec.json.Decoder(list[msgspec.Raw])
_encoder = msgspec.json.Encoder()
encode = _encoder.encode
pack = msgspec.msgpack.encode  # what only this program reads again


@dataclass(frozen=True, slots=True)
class Decoded(Generic[T]):
    """A request and the names of the fields it carried that no type knows (dotted paths, client text cut)."""

    value: T
    ignored: tuple[str, ...]


def split(body: bytes | str, entries: int = SEPARATORS) -> dict[str, msgspec.Raw]:
    """The top-level fields of a JSON object, undecoded. Raises WireError: invalid_json, or invalid_value if it
    would become too many objects: more than `entries` fields and list entries."""
    try:
        data = body if isinstance(body, bytes) else body.encode()
        # Raw values are not looked into, so text that is not UTF-8 could hide in a field we only name.
        if isinstance(body, bytes):
            body.decode()
        _count(data, entries)
        return _top_level.decode(data)
    except _UNREADABLE as error:
        raise _unreadable(error) from None


def decode(
    body: bytes | str,
    type_: type[T],
    *,
    strict: bool = False,
    fields: dict[str, msgspec.Raw] | None = None,
    entries: int = SEPARATORS,
) -> Decoded[T]:
    """`body` as a `type_` (a msgspec Struct), every bound checked. `fields` is `split(body)`, if already done.

    Raises WireError: invalid_json (not a JSON object), missing_required_parameter, invalid_value, and
    unknown_parameter for fields that no type knows if `strict`, for `x_` fields and in closed objects always.
    """
    if fields is None:
        fields = split(body, entries)
    struct: Any = type_
    shape = _shape(struct)
    assert isinstance(shape, _Struct)
    for name, raw in fields.items():
        if shape.fields.get(name, _FREE) is _FREE:
            _bound(raw, name)
    try:
        value: T = _decoder(struct).decode(body)
    except _UNREADABLE as error:
        raise _unreadable(error, partial(_key_of, struct, fields)) from None
    ignored: list[str] = []
    _walk(fields, shape, "", ignored)
    for path in ignored:
        if strict or path.startswith("x_"):
            raise WireError("unknown_parameter", f"unknown field: {path}", path)
    return Decoded(value, tuple(ignored[:IGNORED_NAMED]))


def compact(raw: msgspec.Raw) -> str:
    """A small free-form value as JSON text without spaces, for comparison; longer ones give "…"."""
    data = bytes(raw).strip()
    if len(data) > 64:
        return "…"
    try:
        return msgspec.json.format(data, indent=-1).decode()
    except _UNREADABLE:
        return "…"


def entries(raw: msgspec.Raw) -> list[msgspec.Raw]:
    """The entries of a list that this program has written, undecoded."""
    return _array.decode(raw)


def string(raw: msgspec.Raw | None) -> str | None:
    """The text of a field that should be a string, or None if it is absent or something else."""
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw, type=str)
    except _UNREADABLE:
        return None


def free_form(raw: msgspec.Raw, path: str) -> Any:
    """The builtins of a bounded free-form value; WireError if it is too large, too deep or not JSON."""
    _bound(raw, path)
    try:
        return msgspec.json.decode(raw)
    except _UNREADABLE as error:
        raise _unreadable(error) from None


def typed(value: Any, type_: type[T] | Any, path: str) -> T:
    """Builtins from `free_form` as a `type_`; WireError names the place in them."""
    try:
        return msgspec.convert(value, type_)
    except msgspec.ValidationError as error:
        match = _AT.search(text := str(error))
        where = f"{path}.{match[1]}".rstrip(".") if match and match[1] else path
        what = text[: match.start()] if match else text
        if missing := _MISSING.match(what):
            where = f"{where}.{missing[1]}"
            raise WireError(
                "missing_required_parameter", f"missing field: {shorten(where)}", shorten(where)
            ) from None
        raise WireError("invalid_value", f"{shorten(where)}: {shorten(what)}", shorten(where)) from None


def unpack(data: bytes, type_: Any) -> Any:
    """What `pack` made of a `type_`; it comes from our own memory or disk, so anything else raises."""
    return _unpacker(type_).decode(data)


@lru_cache(maxsize=16)
def _unpacker(type_: Any) -> Any:
    return msgspec.msgpack.Decoder(type_)


@lru_cache(maxsize=64)
def _decoder(type_: Any) -> Any:
    return msgspec.json.Decoder(type_)


@lru_cache(maxsize=64)
def _shape(type_: Any) -> Any:
    return _shape_of(shapes.type_info(type_))


def _count(data: bytes, entries: int) -> None:
    """WireError, or an error of _UNREADABLE, if `data` would become too many objects. Linear, in C throughout."""
    if data.count(b",") + data.count(b":") <= SEPARATORS:
        return
    _any_json.decode(data)  # the rule about strings holds for JSON only, and what is none is refused here
    outside, strings = _STRING.subn(b"", data, count=_STRINGS + 1)
    fields = outside.count(b":")
    if strings > _STRINGS or fields > SEPARATORS or outside.count(b",") + fields > entries:
        raise WireError("invalid_value", f"the request has more than {entries} fields and list entries")


def _bound(raw: msgspec.Raw, path: str) -> None:
    path = shorten(path)
    data = bytes(raw)
    if len(data) > FREE_FORM_BYTES:
        raise WireError("invalid_value", f"{path} has more than {FREE_FORM_BYTES} bytes", path)
    if data.count(b"[") + data.count(b"{") <= FREE_FORM_DEPTH:
        return
    # What is left are pairs of brackets, and each round takes away the innermost ones: one level of nesting.
    pairs = _STRING.sub(b"", data).translate(_SQUARE, _NO_BRACKET)
    for _ in range(FREE_FORM_DEPTH):
        pairs = pairs.replace(b"[]", b"")
    if pairs:
        raise WireError("invalid_value", f"{path} is nested deeper than {FREE_FORM_DEPTH}", path)


def _key_of(type_: Any, fields: dict[str, msgspec.Raw], path: str) -> str:
    """The path of the first value of the object at `path` (names of objects) that is no value of a `type_`'s: what
    is wrong with it is known, but not which one it is."""
    names = path.split(".")
    begin = "".join(f"{encode(name).decode()}:{{" for name in names)
    try:
        for name in names:
            fields = _top_level.decode(fields[name])
        for key, raw in fields.items():
            alone = f"{{{begin}{encode(key).decode()}:{bytes(raw).decode()}{'}' * len(names)}}}"
            try:
                _decoder(type_).decode(alone)
            except msgspec.ValidationError as error:
                if f"{path}[...]" in str(error):
                    return f"{path}.{key}"
    except (KeyError, *_UNREADABLE):
        pass  # there are lists on the way
    return path


def _unreadable(error: Exception, key_of: Callable[[str], str] | None = None) -> WireError:
    if isinstance(error, RecursionError):
        return WireError("invalid_value", f"the request is nested deeper than {FREE_FORM_DEPTH}")
    if not isinstance(error, msgspec.ValidationError):
        return WireError("invalid_json", f"not a JSON object: {shorten(str(error))}")
    text = str(error)
    match = _AT.search(text)
    path = match[1] if match else ""
    what = text[: match.start()] if match else text
    if path.endswith("[...]") and key_of is not None:
        path = key_of(path.removesuffix("[...]"))
    if missing := _MISSING.match(what):
        name = f"{path}.{missing[1]}" if path else missing[1]
        return WireError("missing_required_parameter", f"missing field: {shorten(name)}", shorten(name))
    if unknown := _UNKNOWN.match(what):
        name = shorten(f"{path}.{unknown[1]}" if path else unknown[1])
        return WireError("unknown_parameter", f"unknown field: {name}", name)
    if not path:
        return WireError("invalid_json", f"not a valid request object: {shorten(what)}")
    return WireError("invalid_value", f"{shorten(path)}: {shorten(what)}", shorten(path))


# -- unknown fields below the top level ------------------------------------------------------------------------


class _Free:
    """No type of ours below this point."""


_FREE = _Free()


@dataclass(frozen=True, slots=True)
class _Struct:
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Choice:
    """A value that is a list, one of several structs told apart by `tag_field`, or neither."""

    item: Any
    tag_field: str | None
    structs: dict[str | None, _Struct]


_PLAIN = _Choice(None, None, {})


def _shape_of(node: shapes.Type) -> Any:
    if isinstance(node, shapes.Metadata):
        return _shape_of(node.type)
    if isinstance(node, shapes.RawType | shapes.AnyType):
        return _FREE
    if isinstance(node, shapes.StructType):
        known: dict[str, Any] = {field.encode_name: _shape_of(field.type) for field in node.fields}
        if node.tag_field is not None:
            known[node.tag_field] = _PLAIN
        return _Struct(known)
    if isinstance(node, shapes.ListType):
        return _Choice(_shape_of(node.item_type), None, {})
    if isinstance(node, shapes.UnionType):
        item: Any = None
        tag_field: str | None = None
        structs: dict[str | None, _Struct] = {}
        for member in node.types:
            inner = member.type if isinstance(member, shapes.Metadata) else member
            if isinstance(inner, shapes.ListType):
                item = _shape_of(inner.item_type)
            elif isinstance(inner, shapes.StructType):
                tag_field = inner.tag_field
                structs[inner.tag if isinstance(inner.tag, str) else None] = _shape_of(inner)
        if len(structs) == 1 and item is None and None in structs:
            return structs[None]
        return _Choice(item, tag_field, structs)
    return _PLAIN


def _walk(fields: dict[str, msgspec.Raw], shape: _Struct, path: str, ignored: list[str]) -> None:
    """Collect the dotted names of unknown fields. Runs after the typed decode, so every list is bounded."""
    for name, raw in fields.items():
        inner = shape.fields.get(name)
        if inner is None:
            full = shorten(f"{path}.{name}" if path else name)
            _bound(raw, full)
            ignored.append(full)
        elif inner is not _PLAIN and inner is not _FREE:
            _walk_value(raw, inner, f"{path}.{name}" if path else name, ignored)


def _walk_value(raw: msgspec.Raw, shape: Any, path: str, ignored: list[str]) -> None:
    start = bytes(raw)[:1]
    if isinstance(shape, _Choice):
        if start == b"[" and shape.item is not None and shape.item is not _PLAIN and shape.item is not _FREE:
            for index, item in enumerate(_array.decode(raw)):
                _walk_value(item, shape.item, f"{path}[{index}]", ignored)
            return
        if start != b"{" or not shape.structs:
            return
        fields = _top_level.decode(raw)
        tag = msgspec.json.decode(fields[shape.tag_field], type=str) if shape.tag_field else None
        _walk(fields, shape.structs[tag], path, ignored)
    elif start == b"{":
        _walk(_top_level.decode(raw), shape, path, ignored)
