"""Asks into prompts, tokens into text, for one model folder. Knows its text files, never its weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headrace.runtime.checkpoint import CheckpointError, read_json
from headrace.runtime.grammar import GrammarCompiler, grammar_of
from headrace.runtime.image import Image, ImageSpan
from headrace.runtime.image_settings import ImageSettings
from headrace.runtime.image_shape import COUNT_LIMIT
from headrace.runtime.images import BadPicture, picture_bytes, read_picture
from headrace.runtime.interface import Ask, Picture, Prompt, TextCutter, TextSplitter
from headrace.runtime.parsers.families import TOOLS, AnswerForm, answer_form
from headrace.runtime.refusal import Refusal
from headrace.runtime.seam import Seam, SeamLost
from headrace.runtime.template import SOURCE_LIMIT, ChatTemplate, TemplateRefused
from headrace.runtime.text import Cutter, TokenText
from headrace.runtime.tokenizer import NAMES, FolderTokenizer, SpecialLeak
from headrace.runtime.turns import described
from headrace.runtime.typed import PiecedPrompt, TypedPrompt
from headrace.runtime.woven import Woven, replaced

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
        *,
        tool_parser: str = "auto",
        reasoning_parser: str = "auto",
    ) -> None:
        """embedding_rows, logits_width: of the model itself; max_context: tokens that fit, if it is known: text
        that cannot be that short is refused before any work is spent on it. images: how the model wants pictures,
        None if it takes none. tool_parser, reasoning_parser: see parsers.families.answer_form. Raises
        CheckpointError."""
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
        source, with_tools = _template_sources(folder, self._tokenizer.config)
        self._source = source
        self._template = None if source is None else ChatTemplate(source, self._tokenizer.names)
        self._tool_template = self._template
        if with_tools is not None:
            self._tool_template = ChatTemplate(with_tools, self._tokenizer.names)
        self._form = answer_form(with_tools or source or "", tool_parser, reasoning_parser)
        self._grammars: GrammarCompiler | None = None
        self._shown: dict[frozenset[str], TokenText] = {}  # by the special tokens that are seen as text

    def prepare(self, ask: Ask) -> Prompt:
        """Template and tokenize. Raises Refusal for anything wrong with the ask's text."""
        self._check_ids_of(ask)
        _check_unicode(ask)
        pictures = self.pictures_of(ask)
        thinking = False
        if ask.messages is not None:
            name, (ids, thinking) = "messages", self._chat(ask)
        elif isinstance(ask.prompt, str):
            name, ids = "prompt", self._encoded(ask, "prompt", ask.prompt)
        else:
            assert ask.prompt is not None, "an Ask has messages or a prompt"
            name, ids = "prompt", list(ask.prompt)
        grammar = None
        if ask.guided:
            grammar = grammar_of(ask, self._form_of(ask, thinking), self.eos_ids, self._compiler, thinking)
        wire = ask.wire_name(name)
        if not ids:
            raise Refusal("invalid_value", f"{wire} is empty: there is no token to start from", wire)
        for token in (min(ids), max(ids)):
            if not 0 <= token < self.embedding_rows:
                what = "token ids lie" if isinstance(ask.prompt, tuple) else "the model's token ids lie"
                raise Refusal(
                    "invalid_value", f"{wire}: {what} in [0, {self.embedding_rows}), not {token}", wire
                )
        if self.images is None:
            return Prompt(tuple(ids), thinking, grammar)
        laid, spans = self._with_pictures(ask, wire, ids, pictures)
        return Prompt(tuple(laid), thinking, grammar, spans)

    def typed(self, ask: Ask) -> TypedPrompt:
        """What reads the prompt of `ask` while its last message is typed."""
        return PiecedPrompt(self, self._tokenizer, ask)

    def cutter(self, ask: Ask) -> TextCutter:
        """A fresh cutter with the ask's stop strings. An answer to a prompt continues its text, and so does one
        that goes on with a message. Stop strings are looked for in what is new."""
        continues = self._continues(ask)
        marks = frozenset[str]() if ask.messages is None else self._form.marks(bool(ask.callable_tools))
        return Cutter(self._showing(marks), ask.stop, continues=continues, quiet=ask.min_tokens)

    def splitter(self, ask: Ask, prompt: Prompt) -> TextSplitter | None:
        """For the answer to messages, where the model's form has reasoning, or calls and there are tools."""
        if ask.messages is None:
            return None
        tools = {tool.name: tool.parameters for tool in ask.callable_tools}
        return self._form_of(ask, prompt.thinking).splitter(
            tools,
            single=not ask.tool_choice.parallel,
            thinking=prompt.thinking,
            midway=prompt.thinking and ask.ending == "open",
        )

    def tokenize(self, text: str) -> list[int]:
        """Plain text to ids, nothing put around it; strings that spell special tokens stay ordinary text."""
        return self._tokenizer.encode_text(text, ends=False)

    def detokenize(self, ids: Sequence[int], special: bool = False) -> str:
        """Ids to text; special tokens are left out, or with `special` spelled as the tokenizer names them."""
        text = self._tokenizer.text
        if not special:
            return text.decode(ids)
        parts: list[str] = []
        run: list[int] = []
        for token in ids:
            name, raw = self.spell(token)
            if raw is None:
                parts += (text.decode(run, continues=bool(parts)), name)
                run = []
            else:
                run.append(token)
        return "".join([*parts, text.decode(run, continues=bool(parts))])

    def spell(self, token: int) -> tuple[str, bytes | None]:
        """One token by itself: a name to show, and its bytes in the text; None for a token that has none
        there."""
        pieces = self._tokenizer.text.raw
        raw = pieces[token] if 0 <= token < len(pieces) else b""
        if raw:
            return raw.decode(errors="replace"), raw
        return self._tokenizer.name_of(token) or f"token_id:{token}", None

    def about(self) -> Mapping[str, Any]:
        """What the folder says of its tokenizer, in the names of tokenizer_config.json."""
        names = ("bos_token", "eos_token", "pad_token")
        known = {name: self._tokenizer.names[name] for name in names if name in self._tokenizer.names}
        kind = self._tokenizer.config.get("tokenizer_class")
        if isinstance(kind, str):
            known["tokenizer_class"] = kind
        if self._source is not None:
            known["chat_template"] = self._source
        return known

    @property
    def abilities(self) -> frozenset[str]:
        """What its answers can hold besides text: "tools", "thinking"; and "vision", where it sees."""
        return self._form.abilities | ({"vision"} if self.images is not None else frozenset())

    def _showing(self, marks: frozenset[str]) -> TokenText:
        text = self._shown.get(marks)
        if text is None:
            text = self._shown[marks] = self._tokenizer.text_showing(marks)
        return text

    def _compiler(self) -> GrammarCompiler:
        if self._grammars is None:
            raw = self._showing(self._form.marks(calling=True)).raw[: self.logits_width]
            padding = (b"",) * (self.logits_width - len(raw))
            self._grammars = GrammarCompiler(raw + padding, self.eos_ids, self._tokenizer.encode_rendered)
        return self._grammars

    def _form_of(self, ask: Ask, thinking: bool) -> AnswerForm:
        if ask.messages is None:
            return AnswerForm()
        return self._form if ask.ending != "open" or thinking else self._form.past_reasoning

    def _continues(self, ask: Ask) -> bool:
        if ask.ending == "open":
            assert ask.messages is not None
            return bool(ask.messages[-1].content or ask.messages[-1].reasoning)
        if isinstance(ask.prompt, str):
            return ask.prompt != ""
        pieces = self._tokenizer.text.raw
        return ask.prompt is not None and any(token < len(pieces) and pieces[token] for token in ask.prompt)

    def pictures_of(self, ask: Ask) -> list[Picture]:
        """All pictures of the ask, in order; nothing of them was looked at but their number."""
        pictures = [picture for message in ask.messages or () for picture in message.pictures]
        wire = ask.wire_name("messages")
        if pictures and self.images is None:
            raise Refusal(
                "invalid_value", "this model takes no pictures: it reads text alone", pictures[0].name or wire
            )
        if len(pictures) > COUNT_LIMIT:
            what = f"{wire} holds {len(pictures)} pictures; at most {COUNT_LIMIT} are taken"
            raise Refusal("invalid_value", what, wire)
        return pictures

    def _with_pictures(
        self, ask: Ask, wire: str, ids: list[int], pictures: list[Picture]
    ) -> tuple[list[int], tuple[ImageSpan, ...]]:
        """The ids, each placeholder among them as often as its picture has rows, and where the pictures stand."""
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
            return ids, ()
        return self.lay(ids, [self.read_image(ask, picture) for picture in pictures])

    def lay(self, ids: list[int], images: Sequence[Image]) -> tuple[list[int], tuple[ImageSpan, ...]]:
        """The ids, each placeholder among them as often as its picture has rows, and where the pictures stand.
        There are as many pictures as placeholders, or more."""
        if not images:
            return ids, ()
        assert self.images is not None
        token, shown = self.images.token_id, iter(images)
        laid: list[int] = []
        spans: list[ImageSpan] = []
        for each in ids:
            if each == token:
                spans.append(ImageSpan(len(laid), next(shown)))
                laid += [token] * spans[-1].image.rows
            else:
                laid.append(each)
        return laid, tuple(spans)

    def read_image(self, ask: Ask, picture: Picture) -> Image:
        assert self.images is not None
        try:
            data = picture_bytes(picture.source)
            return read_picture(data, self.images, ask.tenant.salt, picture.small)
        except BadPicture as bad:
            name = picture.name or ask.wire_name("messages")
            raise Refusal("invalid_value", f"{name}: the picture {bad}", name) from bad

    def _chat(self, ask: Ask) -> tuple[list[int], bool]:
        """Ids of the rendered messages, and whether they end inside of reasoning."""
        wire, marks = ask.wire_name("messages"), self._form.reasoning
        rendered, seam = self._written(ask)
        if seam is not None:
            thinking = seam.thinking(marks)
        else:
            thinking = marks is not None and str.__str__(rendered).rstrip().endswith(marks.begin)
        if isinstance(rendered, Woven):
            return self._encode_woven(wire, rendered), thinking
        return self._tokenizer.encode_rendered(rendered), thinking

    def rendered(self, ask: Ask) -> str:
        """The messages as the chat template writes them: a Woven where anybody spelled a special token. Raises
        Refusal."""
        return self._written(ask)[0]

    def _written(self, ask: Ask) -> tuple[str, Seam | None]:
        """What `rendered` says; and where the answer goes on, if it does so with the last message."""
        wire = ask.wire_name("messages")
        tools = [] if ask.tool_choice.mode == "none" else [tool.described() for tool in ask.tools]
        template = self._tool_template if tools else self._template
        if template is None:
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
        if tools:
            self._check_tools(ask, template)
        messages = described(ask.messages, template.source, template.takes_parts)
        calls = [message["tool_calls"] for message in messages if "tool_calls" in message]
        if calls and "tool_calls" not in template.source:
            raise Refusal(
                "unsupported_parameter",
                f"{wire}: this model's chat template has no place for tool calls",
                wire,
            )
        decoded = _strings(calls)  # JSON may spell what its text does not show
        for text in decoded:
            _check_characters(text, wire)
        described_tools = _strings(tools)
        for text in described_tools:
            _check_characters(text, ask.wire_name("tools"))
        written = [text for message in ask.messages for text in message.texts] + decoded + described_tools
        written += [value for value in ask.template_options.values() if isinstance(value, str)]
        # Only where a client spelled a special token must the render remember who wrote what; everywhere else
        # the template sees plain strings and the ids are those of transformers.
        guarded = any(self._tokenizer.spells_special(text) for text in written)
        seam = Seam(ask.messages[-1]) if ask.ending == "open" else None
        if seam is not None:
            messages[-1] = seam.marked(messages[-1])
        answering = ask.ending == "answer"
        try:
            rendered = template.render(
                messages, ask.template_options, weaving=guarded, tools=tools, answering=answering
            )
            if seam is not None:
                rendered = seam.cut(rendered)
        except TemplateRefused as refused:
            raise Refusal("invalid_value", str(refused), wire) from refused
        except SeamLost as lost:
            what = "this model's chat template does not write the last message so that it can be continued"
            raise Refusal("unsupported_parameter", f"{wire}: {what}", wire) from lost
        rendered = self._framed(rendered)
        self._check_length(wire, rendered)
        return (Woven(rendered) if guarded and not isinstance(rendered, Woven) else rendered), seam

    def _framed(self, rendered: str) -> str:
        """The text with all that stands around a picture, where the template writes its first token alone.
        Paragraphs around it are part of the text: they may become one token with their neighbours."""
        frame = None if self.images is None else self.images.frame
        if self.images is None or frame is None:
            return rendered
        begin, row, end = (
            self._tokenizer.name_of(token) or "" for token in (frame[0], self.images.token_id, frame[1])
        )
        return replaced(rendered, begin, f"\n\n{begin}{row}{end}\n\n") if begin else rendered

    def _check_tools(self, ask: Ask, template: ChatTemplate) -> None:
        wire = ask.wire_name("tools")
        if not template.takes_tools:
            raise Refusal(
                "unsupported_parameter", f"{wire}: this model's chat template has no place for tools", wire
            )
        if self._form.tools is None:
            raise Refusal(
                "unsupported_parameter",
                f"{wire}: how this model writes calls is not known; the server can be told with --tool-parser "
                f"({', '.join(TOOLS)})",
                wire,
            )

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


def _check_unicode(ask: Ask) -> None:
    """Half a surrogate pair has no UTF-8 and so no bytes to tokenize."""
    texts = [("messages", text) for message in ask.messages or () for text in message.texts]
    texts += [("prompt", ask.prompt)] if isinstance(ask.prompt, str) else []
    texts += [("template_options", each) for each in ask.template_options.values() if isinstance(each, str)]
    for name, text in texts:
        _check_characters(text, ask.wire_name(name))


def _check_characters(text: str, wire: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
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


def _strings(value: Any) -> list[str]:
    """Every string in a plain value, and the value as JSON, where strings meet their neighbours."""
    found = [json.dumps(value, ensure_ascii=False)]
    unseen = [value]
    while unseen:
        each = unseen.pop()
        if isinstance(each, str):
            found.append(each)
        elif isinstance(each, Mapping):
            unseen += each.keys()
            unseen += each.values()
        elif isinstance(each, list):
            unseen += each
    return found


def _template_file(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > 4 * SOURCE_LIMIT:
            raise CheckpointError(f"{path.name} is too large")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path.name} cannot be read: {error}") from error


def _template_sources(folder: Path, config: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The default template, and the one for asks with tools where the folder has one of its own.

    From chat_template.jinja and additional_chat_templates, else from tokenizer_config.json.
    """
    source = _template_file(folder / "chat_template.jinja")
    if source is not None:
        return source, _template_file(folder / "additional_chat_templates" / "tool_use.jinja")
    found, tool_use = config.get("chat_template"), None
    if isinstance(found, list | dict):
        listed = [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
        named = (
            found if isinstance(found, dict) else {each.get("name"): each.get("template") for each in listed}
        )
        if "default" not in named:
            raise CheckpointError("tokenizer_config.json has several chat templates and none called default")
        found, tool_use = named["default"], named.get("tool_use")
    for each in (found, tool_use):
        if each is not None and not isinstance(each, str):
            raise CheckpointError("tokenizer_config.json: chat_template is not a text")
    return found, tool_use
