"""The tokenizer of a model folder: text to ids and ids to text. Knows tokenizer.json, not messages or
requests.

Reads `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json` itself and runs the model and
its rules in the tokenizers library. Special tokens come from templates, never from text that a client wrote
(see special.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from headrace.runtime.checkpoint import CheckpointError, read_json
from headrace.runtime.decoding import token_text
from headrace.runtime.refusal import shorten
from headrace.runtime.special import ESCAPE, SpecialStrings
from headrace.runtime.text import TokenText

TOKENIZER_LIMIT = 128 << 20  # bytes of tokenizer.json
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class SpecialLeak(Exception):
    """Text would have become a special token. Never expected; the request that did it is refused."""


class FolderTokenizer:
    """`names`: the special tokens by role (`bos_token`, ...), as chat templates know them."""

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointError for anything in the files that is not understood."""
        source = read_json(folder / "tokenizer.json", limit=TOKENIZER_LIMIT)
        config = _optional(folder / "tokenizer_config.json")
        special_map = _optional(folder / "special_tokens_map.json")
        self.config: Mapping[str, Any] = config
        self.names, extras = _named_tokens(special_map, config)
        model = source.get("model")
        if (
            not isinstance(model, dict)
            or model.get("type", "BPE") != "BPE"
            or not isinstance(model.get("vocab"), dict)
        ):
            raise CheckpointError("tokenizer.json: only BPE tokenizers are supported")
        added = _added_tokens(source, model["vocab"], config, [*self.names.values(), *extras])
        self._normalized_too = any(token["normalized"] for token in added)
        self._rules = {**source, "added_tokens": added, "truncation": None, "padding": None}
        self._arm({token["content"] for token in added})
        self._check_ids(added)
        ordinary = self._words()
        if ordinary:
            self._arm({token["content"] for token in added} - ordinary)
        self._check_shield()
        specials = frozenset(
            token["id"] for token in added if token["special"] and token["content"] not in ordinary
        )
        tokens = {i: token for token, i in self._plain.get_vocab(True).items()}
        self._decoder, self._tokens, self._hidden = source.get("decoder"), tokens, specials
        self.text: TokenText = token_text(self._decoder, tokens, specials)
        self._ends = self._control_count(_encode(self._plain, "", ends=True))

    def text_showing(self, contents: frozenset[str]) -> TokenText:
        """`text`, in which the special tokens with these contents are the text that they spell."""
        shown = {token for token in self._hidden if self._tokens[token] in contents}
        return token_text(self._decoder, self._tokens, self._hidden - shown) if shown else self.text

    def id_of(self, token: str) -> int | None:
        """The id of a token by its content."""
        found = self._plain.token_to_id(token)
        return None if found is None else int(found)

    def name_of(self, token: int) -> str | None:
        """The content of a token by its id."""
        found = self._plain.id_to_token(token)
        return None if found is None else str(found)

    def spells_special(self, text: str) -> bool:
        """True if `text` holds a string that the tokenizer would take for an added token."""
        if self._special.spelled(text):
            return True
        normalizer = self._plain.normalizer
        return (
            self._normalized_too
            and normalizer is not None
            and self._special.spelled(normalizer.normalize_str(text))
        )

    def encode_rendered(self, text: str) -> list[int]:
        """Ids of a rendered template in which no client wrote an added token: those of transformers."""
        return _encode(self._plain, text, ends=False)

    def encode_places(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """As `encode_rendered`; and which characters each token is of, as [start, end)."""
        found = self._plain.encode_batch([text], add_special_tokens=False)[0]
        return list(found.ids), list(found.offsets)

    def is_control(self, token: int) -> bool:
        """A token that only a template writes: nothing that follows it makes it another one."""
        return token in self._control_ids

    def plain_until(self, text: str) -> int:
        """How far `text` holds no string that the tokenizer would take for an added token."""
        place = self._special.first(text)
        return 0 if place == len(text) and self.spells_special(text) else place

    def encode_guarded(self, text: str, ends: bool = False) -> list[int]:
        """Ids of `text` where an added token counts only if all of it is a template's own (see Woven).

        ends: with the beginning and end tokens that the tokenizer puts around a plain text.
        """
        shielded, kept = self._special.shield(text)
        ids = _encode(self._shielded, shielded, ends)
        if self._control_count(ids) > kept + (self._ends if ends else 0):
            raise SpecialLeak(f"{shorten(str.__str__(text))!r} became a special token")
        return ids

    def encode_text(self, text: str, ends: bool) -> list[int]:
        """Ids of a client's plain text. ends: with the tokenizer's beginning and end tokens."""
        if self.spells_special(text):
            return self.encode_guarded(text, ends)
        return _encode(self._plain, text, ends)

    def _control_count(self, ids: list[int]) -> int:
        return sum(1 for token in ids if token in self._control_ids)

    def _check_ids(self, added: list[dict[str, Any]]) -> None:
        for token in added:
            if self._plain.token_to_id(token["content"]) != token["id"]:
                raise CheckpointError(
                    f"tokenizer.json: {token['content'][:100]!r} cannot have the id {token['id']}"
                )

    def _arm(self, contents: set[str]) -> None:
        """Keep text apart from the added tokens `contents`."""
        if any(ESCAPE in content for content in contents):
            raise CheckpointError("tokenizer.json: an added token holds the noncharacter U+FDD0")
        self._special = SpecialStrings(contents)
        guarded = set(self._special.contents)
        self._control_ids = frozenset(
            token["id"] for token in self._rules["added_tokens"] if token["content"] in guarded
        )
        # The shielded tokenizer is the plain one for every text without a shield in it, unless an added token is
        # looked for in normalized text: then a shield would be gone before the cutting, and two are needed.
        self._shielded = _build(_shielded(self._rules, self._special))
        self._plain = _build(self._rules) if self._normalized_too else self._shielded

    def _leaks(self, content: str) -> bool:
        for text in (content, f" {content}", f"a{content}a"):
            try:
                self.encode_guarded(text)
            except SpecialLeak:
                return True
        return False

    def _words(self) -> set[str]:
        """Added tokens without a meaning that the model's own merges make of ordinary text.

        Some files list a word as padding ("!") or add words by name. Nothing could keep text apart from them, and
        nothing needs to: they are treated as the words they are.
        """
        meaningless = {self.names.get("pad_token"), self.names.get("unk_token")}
        meaningless |= {token["content"] for token in self._rules["added_tokens"] if not token["special"]}
        return {
            content for content in self._special.contents if content in meaningless and self._leaks(content)
        }

    def _check_shield(self) -> None:
        """Every added token that is guarded, written as text, must stay text."""
        for content in self._special.contents:
            if self._leaks(content):
                raise CheckpointError(
                    f"tokenizer.json: the tokenizer cannot read {content[:100]!r} as ordinary text"
                )


def _encode(tokenizer: Tokenizer, text: str, ends: bool) -> list[int]:
    # The library's `encode` keeps the interpreter locked (0.9 s for 700 KB, while every stream stands still); its
    # batch form does not, and without offsets it is quicker too.
    return list(tokenizer.encode_batch_fast([text], add_special_tokens=ends)[0].ids)


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _content(value: Any) -> str | None:
    """A token in a config file: a string, or an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _named_tokens(
    special_map: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[dict[str, str], list[str]]:
    """Special tokens by role, as templates know them, and those without a role."""
    names = {}
    for name in NAMES:
        token = _content(config.get(name)) or _content(special_map.get(name))
        if token is not None:
            names[name] = token
    extras: list[str] = []
    for source in (config, special_map):
        for key in ("extra_special_tokens", "additional_special_tokens"):
            listed = source.get(key)
            if isinstance(listed, dict):  # a model's own roles, like image_token
                names.update({str(role): token for role, each in listed.items() if (token := _content(each))})
            elif isinstance(listed, list):
                extras += [token for each in listed if (token := _content(each))]
    return names, extras


def _added_tokens(
    source: Mapping[str, Any], vocab: Mapping[str, Any], config: Mapping[str, Any], special: list[str]
) -> list[dict[str, Any]]:
    """The added tokens of all files together, each complete, in the order of their ids."""
    listed = source.get("added_tokens")
    found: dict[str, dict[str, Any]] = {}
    for entry in listed if isinstance(listed, list) else []:
        token = _entry(entry, entry.get("id") if isinstance(entry, dict) else None)
        found[token["content"]] = token
    decoder = config.get("added_tokens_decoder")
    for key, entry in (decoder if isinstance(decoder, dict) else {}).items():
        token = _entry(entry, int(key) if key.isdecimal() else None)
        found.setdefault(token["content"], token)
    for content in special:
        if content in found:
            found[content]["special"] = True
        elif isinstance(vocab.get(content), int):
            found[content] = _entry({"content": content, "special": True}, vocab[content])
    return sorted(found.values(), key=lambda token: token["id"])


def _entry(entry: Any, token: Any) -> dict[str, Any]:
    content = entry.get("content") if isinstance(entry, dict) else None
    if not isinstance(content, str) or not content or type(token) is not int or not 0 <= token < 1 << 31:
        raise CheckpointError(f"an added token is not understood: {str(entry)[:100]}")
    special = entry.get("special", False) is True
    return {
        "id": token,
        "content": content,
        "single_word": entry.get("single_word", False) is True,
        "lstrip": entry.get("lstrip", False) is True,
        "rstrip": entry.get("rstrip", False) is True,
        "normalized": entry.get("normalized", not special) is True,
        "special": special,
    }


def _shielded(rules: Mapping[str, Any], special: SpecialStrings) -> dict[str, Any]:
    normalizer = rules.get("normalizer")
    steps = special.normalizers() + ([normalizer] if normalizer is not None else [])
    return {
        **rules,
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "added_tokens": [{**token, "normalized": False} for token in rules["added_tokens"]],
    }


def _build(rules: Mapping[str, Any]) -> Tokenizer:
    try:
        return Tokenizer.from_str(json.dumps(rules))
    except BaseException as error:
        # A panic inside the library arrives as a BaseException of its own; interrupts go on.
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise CheckpointError(f"tokenizer.json is not understood: {shorten(str(error))}") from error
