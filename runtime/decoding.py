"""The decoder of a tokenizer.json, read as one rule: what are the bytes of a token? Knows JSON and bytes
alone.

Streaming needs the bytes of each token by itself, so only decoders are accepted that join tokens without
looking at their neighbours: byte-level ones (GPT-2, Llama 3, Qwen) and the SentencePiece kind (Llama 2,
Mistral). Others are refused when the model is loaded, never guessed at.

Where an answer holds bytes that are no text, this reading keeps the characters around them and gives one
U+FFFD for each maximal invalid part. (The byte fallback of the tokenizers library turns a whole run of byte
tokens into U+FFFD if any of it is invalid, which a stream that has already shown the first characters cannot
do.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from headrace.runtime.checkpoint import CheckpointError
from headrace.runtime.text import LeadingSpace, TokenText

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_characters() -> dict[str, int]:
    """The visible character that stands for each byte in byte-level vocabularies.

    Printable Latin-1 stands for itself; the other bytes, in order, take the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return table


_CHARACTER_BYTES = byte_characters()


def byte_level(token: str) -> bytes:
    """The bytes of a byte-level token; one with a character outside the table stands for itself."""
    try:
        return bytes([_CHARACTER_BYTES[char] for char in token])
    except KeyError:
        return token.encode()


def token_text(decoder: Any, tokens: Mapping[int, str], specials: frozenset[int]) -> TokenText:
    """The TokenText for `tokens` (id to token) under a tokenizer.json decoder; special tokens have no text.

    Raises CheckpointError for a decoder that is not understood.
    """
    convert, leading = _reading(decoder)
    raw = [b""] * (max(tokens, default=-1) + 1)
    for token, content in tokens.items():
        if token not in specials:
            raw[token] = convert(content)
    firsts = {}
    if leading.bare_first:
        spaced = _replacement(decoder)
        for token, content in tokens.items():
            if token not in specials and spaced in content:
                firsts[token] = content.replace(spaced, "").encode()
    return TokenText(raw, leading, firsts)


def _reading(decoder: Any) -> tuple[Callable[[str], bytes], LeadingSpace]:
    steps = decoder.get("decoders") if _kind(decoder) == "Sequence" else [decoder]
    if not isinstance(steps, list) or not steps:
        raise CheckpointError("tokenizer.json has no decoder, so tokens cannot be turned into text")
    replacements: list[tuple[str, str]] = []
    kinds = [_kind(step) for step in steps]
    if kinds in (["ByteLevel"], ["ByteLevel", "Fuse"]):
        return byte_level, LeadingSpace()
    if kinds == ["Metaspace"]:
        spaced = _replacement(decoder)
        return lambda token: token.replace(spaced, " ").encode(), LeadingSpace(bare_first=_prefixed(steps[0]))
    bytes_too = fused = False
    leading = LeadingSpace()
    for kind, step in zip(kinds, steps, strict=True):
        if kind == "Replace" and not fused and not bytes_too:
            replacements.append(_replace(step))
        elif kind == "ByteFallback" and not fused:
            bytes_too = True
        elif kind == "Fuse":
            fused = True
        elif kind == "Strip" and fused and not leading.strip and _strips_front(step):
            leading = LeadingSpace(step["content"], step["start"])
        else:
            raise CheckpointError(f"tokenizer.json: decoders of the kind {kinds} are not supported")

    def convert(token: str) -> bytes:
        for old, new in replacements:
            token = token.replace(old, new)
        if bytes_too and (found := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(found[1], 16)])
        return token.encode()

    return convert, leading


def _kind(decoder: Any) -> str:
    if not isinstance(decoder, dict) or not isinstance(decoder.get("type"), str):
        raise CheckpointError("tokenizer.json has no decoder, so tokens cannot be turned into text")
    return str(decoder["type"])[:100]


def _replacement(metaspace: Mapping[str, Any]) -> str:
    found = metaspace.get("replacement", "▁")
    if not isinstance(found, str) or len(found) != 1:
        raise CheckpointError("tokenizer.json: the replacement of a Metaspace decoder is one character")
    return found


def _prefixed(metaspace: Mapping[str, Any]) -> bool:
    scheme = metaspace.get("prepend_scheme")
    if scheme is None:
        return metaspace.get("add_prefix_space", True) is not False
    return scheme != "never"


def _replace(step: Mapping[str, Any]) -> tuple[str, str]:
    pattern = step.get("pattern")
    old = pattern.get("String") if isinstance(pattern, dict) else None
    new = step.get("content")
    if not isinstance(old, str) or not isinstance(new, str) or not old:
        raise CheckpointError("tokenizer.json: a Replace decoder takes a plain string")
    return old, new


def _strips_front(step: Mapping[str, Any]) -> bool:
    content, start, stop = step.get("content"), step.get("start"), step.get("stop")
    return (
        isinstance(content, str)
        and len(content) == 1
        and type(start) is int
        and 0 <= start < 100
        and stop == 0
    )
