"""What turns an ask into ids and ids into text, and what is said of the model: their shapes. No tokenizer here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from headrace.runtime.ask import Ask
from headrace.runtime.image import ImageSpan
from headrace.runtime.parsers.pieces import Piece
from headrace.runtime.request import TokenGrammar
from headrace.runtime.typed import TypedPrompt


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prepared prompt. thinking: its text ends inside of reasoning that the answer goes on with.

    grammar: what the answer must follow, at its beginning; it belongs to the one generation that the prompt is for.
    spans: which of the ids stand for pictures.
    """

    ids: tuple[int, ...]
    thinking: bool = False
    grammar: TokenGrammar | None = None
    spans: tuple[ImageSpan, ...] = ()


class TextCutter(Protocol):
    """Tokens in, certain text out: never half a character, never the beginning of a stop string."""

    matched: str | None  # the stop string that was found; nothing is released after it

    def push(self, token: int) -> str:
        """Text that became certain with this token (possibly empty)."""

    def finish(self) -> str:
        """What was still held back and is now certain, because no token follows. Empty after a match."""


class TextSplitter(Protocol):
    """Certain text in, typed pieces out (see parsers.splitter.Splitter)."""

    over: bool  # the answer has ended with the one call that was allowed

    @property
    def thinking(self) -> bool:
        """The model is reasoning now."""

    @property
    def plain(self) -> bool:
        """What comes from now on is text of the answer, all of it, and nothing is held back."""

    def push(self, text: str) -> list[Piece]:
        """What `text` makes certain."""

    def finish(self) -> list[Piece]:
        """What was held back; no text follows."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What the server says about the model it serves. `embedded` marks the checkpoint inside the package."""

    id: str
    architecture: str
    parameters: int
    dtype: str
    context_len: int
    vocab_size: int
    created: int  # Unix seconds
    embedded: bool = False
    notice: str = ""  # one plain sentence that the chat page shows about this model
    sees: bool = False  # it takes pictures
    weights: str = ""  # digests for receipts (receipt.py), where the engine computes deterministically
    computing: str = ""


class Prompter(Protocol):
    """Text to ids and back for one model. All methods may run in any thread."""

    eos_ids: frozenset[int]
    embedding_rows: int  # valid prompt ids are [0, embedding_rows)
    logits_width: int  # valid ids for stop_ids and logit_bias are [0, logits_width)
    defaults: Mapping[str, Any]  # sampling defaults of the model folder: temperature, top_k, top_p, ...

    def prepare(self, ask: Ask) -> Prompt:
        """Template and tokenize. Raises Refusal for anything wrong with the ask's text."""

    def typed(self, ask: Ask) -> TypedPrompt:
        """What reads the prompt of `ask`, which has messages, while the last of them is typed."""

    def cutter(self, ask: Ask) -> TextCutter:
        """A fresh cutter for one generation, with the ask's stop strings."""

    def splitter(self, ask: Ask, prompt: Prompt) -> TextSplitter | None:
        """What tells reasoning and calls from the text of one generation; None where all of it is the answer."""

    @property
    def abilities(self) -> frozenset[str]:
        """What answers to messages can hold besides text: "tools", "thinking"."""

    def tokenize(self, text: str) -> list[int]:
        """Plain text to ids; strings that spell special tokens stay ordinary text."""

    def detokenize(self, ids: Sequence[int], special: bool = False) -> str:
        """Ids to text; special tokens are left out, or with `special` spelled as the tokenizer names them."""

    def spell(self, token: int) -> tuple[str, bytes | None]:
        """One token by itself: a name to show, and its bytes in the text; None for a token that has no text there
        (a special one, or an id without a token)."""

    def about(self) -> Mapping[str, Any]:
        """What the folder says of its tokenizer: tokenizer_class, bos_token, eos_token, pad_token, chat_template; a
        name it does not have is missing."""
