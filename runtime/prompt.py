"""Asks into prompts, tokens into text, for one model folder. Knows its text files, never its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace.runtime.checkpoint import CheckpointError, read_json
from headrace.runtime.image import Image, ImageSpan
from headrace.runtime.image_settings import ImageSettings
from headrace.runtime.images import COUNT_LIMIT, BadPicture, picture_bytes, read_picture
from headrace.runtime.interface import Ask, Message, Picture, Prompt, TextCutter
from headrace.runtime.refusal import Refusal
from headrace.runtime.template import SOURCE_LIMIT, ChatTemplate, TemplateRefused
from headrace.runtime.text import Cutter
from headrace.runtime.tokenizer import NAMES, FolderTokenizer, SpecialLeak

# Names that a template gets from the server; a client may not set them (reliability.md, SEC-16).
_RESERVED = frozenset(
    {
        *NAMES,
        "messages",
        "tools",
        "documents",
        "add_generation_prompt",
        "continue_final_message",
        "chat_template",
        "tokenize",
        "return_tensors",
        "return_dict",
        "padding",
        "truncation",
        "max_length",
    }
)
_ROLES = frozenset({"system", "user", "assistant", "tool"})

# name in generation_config.json -> (lowest, highest) value that makes sense
_DEFAULTS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_k": (-1, 1 << 31),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
}


class FolderPrompter:
    """The Prompter of a model folder.

    Chat needs the folder's chat template; without one, messages are refused and prompts work. A prompt given
    as text is the client's own text: special tokens spelled in it stay text (give ids to use them), and the
    tokenizer's beginning token is put in front as transformers does. A prompt given as ids is taken as it is.
    """

    def __init__(
        self,
        folder: Path,
        embedding_rows: int,
        logits_width: int,
        max_context: int | None = None,
        images: ImageSettings | None = None,
    ) -> None:
        """embedding_rows, logits_width: of the model itself; max_context: tokens that fit, if it is known: text
        that cannot be that short is refused before any work is spent on it. images: how the model wants pictures,
        None if it takes none. Raises CheckpointError."""
        self.images = images
        self.embedding_rows = embedding_rows
        self.logits_width = logits_width
        self._tokenizer = FolderTokenizer(folder)
        # Normalising a text can shrink it, by a factor of three in the worst compositions.
        longest = max(map(len, self._tokenizer.text.raw), default=1)
        self._text_limit = math.inf if max_context is None else 4 * max_context * max(longest, 16)
        generation = _optional(folder / "generation_config.json")
        self.defaults: Mapping[str, Any] = _sampling_defaults(generation)
        self.eos_ids = self._eos_ids(generation, _optional(folder / "config.json"))
        source = _template_source(folder, self._tokenizer.config)
        self._template = None if source is None else ChatTemplate(source, self._tokenizer.names)

    def prepare(self, ask: Ask) -> Prompt:
        """Template and tokenize. Raises Refusal for anything wrong with the ask's text."""
        self._check_ids_of(ask)
        _check_unicode(ask)
        pictures = self._pictures(ask)
        if ask.messages is not None:
            name, ids = "messages", self._chat(ask)
        elif isinstance(ask.prompt, str):
            name, ids = "prompt", self._encoded(ask, "prompt", ask.prompt)
        else:
            assert ask.prompt is not None, "an Ask has messages or a prompt"
            name, ids = "prompt", list(ask.prompt)
        wire = ask.wire_name(name)
        if not ids:
            raise Refusal("invalid_value", f"{wire} is empty: there is no token to start from", wire)
        for token in ids:
            if not 0 <= token < self.embedding_rows:
                what = "token ids lie" if isinstance(ask.prompt, tuple) else "the model's token ids lie"
                raise Refusal(
                    "invalid_value", f"{wire}: {what} in [0, {self.embedding_rows}), not {token}", wire
                )
        if self.images is None:
            return Prompt(tuple(ids))
        return self._with_pictures(ask, wire, ids, pictures)

    def cutter(self, ask: Ask) -> TextCutter:
        """A fresh cutter with the ask's stop strings. An answer to a prompt continues its text."""
        continues = self._continues(ask)
        return Cutter(self._tokenizer.text, ask.stop, continues=continues, quiet=ask.min_tokens)

    def tokenize(self, text: str) -> list[int]:
        """Plain text to ids, nothing put around it; strings that spell special tokens stay ordinary text."""
        return self._tokenizer.encode_text(text, ends=False)

    def detokenize(self, ids: list[int]) -> str:
        """Ids to text, special tokens left out."""
        return self._tokenizer.text.decode(ids)

    def _continues(self, ask: Ask) -> bool:
        if isinstance(ask.prompt, str):
            return ask.prompt != ""
        pieces = self._tokenizer.text.raw
        return ask.prompt is not None and any(token < len(pieces) and pieces[token] for token in ask.prompt)

    def _pictures(self, ask: Ask) -> list[Picture]:
        """All pictures of the ask, in order; nothing of them was looked at but their number."""
        pictures = [picture for message in ask.messages or () for picture in message.pictures]
        wire = ask.wire_name("messages")
        if pictures and self.images is None:
            raise Refusal(
                "invalid_value", "this model takes no pictures: it reads text alone", pictures[0].name or wire
            )
        if len(pictures) > COUNT_LIMIT:
            raise Refusal(
                "invalid_value",
                f"{wire} holds {len(pictures)} pictures; at most {COUNT_LIMIT} are taken",
                wire,
            )
        return pictures

    def _with_pictures(self, ask: Ask, wire: str, ids: list[int], pictures: list[Picture]) -> Prompt:
        """Each placeholder token in `ids` becomes as many as its picture has rows."""
        assert self.images is not None
        token = self.images.token_id
        shown = ids.count(token)
        if shown != len(pictures):
            if ask.messages is None:
                what = f"the token {token} stands for a picture, and a prompt has none; send messages"
            else:
                what = f"the chat template shows {shown} pictures where {len(pictures)} were sent"
            raise Refusal("invalid_value", f"{wire}: {what}", wire)
        if not pictures:
            return Prompt(tuple(ids))
        images = iter([self._read(ask, picture) for picture in pictures])
        laid: list[int] = []
        spans: list[ImageSpan] = []
        for each in ids:
            if each != token:
                laid.append(each)
                continue
            image = next(images)
            spans.append(ImageSpan(len(laid), image))
            laid += [token] * image.rows
        return Prompt(tuple(laid), tuple(spans))

    def _read(self, ask: Ask, picture: Picture) -> Image:
        assert self.images is not None
        try:
            data = picture_bytes(picture.source)
            return read_picture(data, self.images, ask.tenant.salt, picture.small)
        except BadPicture as bad:
            name = picture.name or ask.wire_name("messages")
            raise Refusal("invalid_value", f"{name}: the picture {bad}", name) from bad

    def _chat(self, ask: Ask) -> list[int]:
        wire = ask.wire_name("messages")
        if self._template is None:
            raise Refusal(
                "invalid_value",
                "this model has no chat template, so it takes no messages; send a prompt instead",
                wire,
            )
        assert ask.messages is not None
        if not ask.messages:
            raise Refusal("invalid_value", f"{wire} is empty", wire)
        options_wire = ask.wire_name("template_options")
        for name in ask.template_options:
            if (
                name in _RESERVED
                or name in self._tokenizer.names
                or name.startswith("_")
                or not name.isidentifier()
            ):
                raise Refusal("invalid_value", f"{options_wire}: {name[:100]!r} cannot be set", options_wire)
        for message in ask.messages:
            if message.role not in _ROLES:
                raise Refusal("invalid_value", f"{wire}: the role {message.role[:100]!r} is not known", wire)
        messages = [{"role": message.role, "content": _template_content(message)} for message in ask.messages]
        written = [message.content for message in ask.messages]
        written += [value for value in ask.template_options.values() if isinstance(value, str)]
        # Only where a client spelled a special token must the render remember who wrote what; everywhere else
        # the template sees plain strings and the ids are those of transformers.
        guarded = any(self._tokenizer.spells_special(text) for text in written)
        try:
            rendered = self._template.render(messages, ask.template_options, weaving=guarded)
        except TemplateRefused as refused:
            raise Refusal("invalid_value", str(refused), wire) from refused
        self._check_length(wire, rendered)
        if not guarded:
            return self._tokenizer.encode_rendered(rendered)
        return self._encode_woven(wire, rendered)

    def _encode_woven(self, wire: str, rendered: str) -> list[int]:
        try:
            return self._tokenizer.encode_guarded(rendered)
        except SpecialLeak as leak:
            raise Refusal("invalid_value", f"{wire} spells a special token", wire) from leak

    def _encoded(self, ask: Ask, name: str, text: str) -> list[int]:
        self._check_length(ask.wire_name(name), text)
        try:
            return self._tokenizer.encode_text(text, ends=True)
        except SpecialLeak as leak:
            wire = ask.wire_name(name)
            raise Refusal("invalid_value", f"{wire} spells a special token", wire) from leak

    def _check_length(self, wire: str, text: str) -> None:
        if len(text) > self._text_limit:  # characters: never more than bytes
            raise Refusal(
                "context_length_exceeded",
                f"{wire} has {len(text)} characters: more than any text that fits this model's context",
                wire,
            )

    def _check_ids_of(self, ask: Ask) -> None:
        width = self.logits_width
        for name, ids in (("stop_ids", ask.stop_ids), ("logit_bias", [token for token, _ in ask.logit_bias])):
            wire = ask.wire_name(name)
            for token in ids:
                if not 0 <= token < width:
                    raise Refusal(
                        "invalid_value", f"{wire}: token ids lie in [0, {width}), not {token}", wire
                    )
        ends = {*ask.stop_ids, *(() if ask.ignore_eos else self.eos_ids)}
        if ask.min_tokens and len(ends) >= width:
            wire = ask.wire_name("stop_ids")
            raise Refusal("invalid_value", f"{wire} leaves no token for min_tokens", wire)

    def _eos_ids(self, generation: Mapping[str, Any], config: Mapping[str, Any]) -> frozenset[int]:
        """generation_config, else config, and the tokenizer's own; ids the model cannot say are left out."""
        inner = config.get("text_config")  # of a model that does more than read
        fallback = config.get("eos_token_id", inner.get("eos_token_id") if isinstance(inner, dict) else None)
        found = set(_ids(generation.get("eos_token_id", fallback)))
        own = self._tokenizer.names.get("eos_token")
        if own is not None and (token := self._tokenizer.id_of(own)) is not None:
            found.add(token)
        return frozenset(token for token in found if 0 <= token < self.logits_width)


def _template_content(message: Message) -> str | list[dict[str, str]]:
    """The content as templates know it: a text, or parts where pictures stand in it."""
    if not message.pictures:
        return message.content
    parts: list[dict[str, str]] = []
    done = 0
    for picture in message.pictures:
        if picture.at > done:
            parts.append({"type": "text", "text": message.content[done : picture.at]})
        parts.append({"type": "image"})
        done = picture.at
    if done < len(message.content):
        parts.append({"type": "text", "text": message.content[done:]})
    return parts


def _check_unicode(ask: Ask) -> None:
    """Half a surrogate pair has no UTF-8 and so no bytes to tokenize."""
    texts = [("messages", message.content) for message in ask.messages or ()]
    texts += [("prompt", ask.prompt)] if isinstance(ask.prompt, str) else []
    texts += [("template_options", each) for each in ask.template_options.values() if isinstance(each, str)]
    for name, text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            wire = ask.wire_name(name)
            raise Refusal(
                "invalid_value", f"{wire} holds a lone surrogate, which is no character", wire
            ) from error


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _ids(value: Any) -> list[int]:
    listed = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token) is int for token in listed):
        raise CheckpointError(f"eos_token_id is not understood: {str(value)[:100]}")
    return listed


def _sampling_defaults(generation: Mapping[str, Any]) -> dict[str, Any]:
    """What the model's makers recommend, in the names of Ask."""
    defaults: dict[str, Any] = {}
    for name, (low, high) in _DEFAULTS.items():
        value = generation.get(name)
        if value is None:
            continue
        if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
            raise CheckpointError(f"generation_config.json: {name} must lie in [{low:g}, {high:g}]")
        if name == "top_p" and value == 0:
            raise CheckpointError("generation_config.json: top_p must be above 0")
        defaults[name] = max(0, int(value)) if name == "top_k" else float(value)
    return defaults


def _template_source(folder: Path, config: Mapping[str, Any]) -> str | None:
    """chat_template.jinja, else chat_template of tokenizer_config.json (the default one)."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            if path.stat().st_size > 4 * SOURCE_LIMIT:
                raise CheckpointError("chat_template.jinja is too large")
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"chat_template.jinja cannot be read: {error}") from error
    found = config.get("chat_template")
    if isinstance(found, list | dict):
        listed = [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
        named = (
            found if isinstance(found, dict) else {each.get("name"): each.get("template") for each in listed}
        )
        if "default" not in named:
            raise CheckpointError("tokenizer_config.json has several chat templates and none called default")
        found = named["default"]
    if found is not None and not isinstance(found, str):
        raise CheckpointError("tokenizer_config.json: chat_template is not a text")
    return found
