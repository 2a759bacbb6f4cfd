"""Where an answer is forked: from a place in its tokens or its text to the tokens that its fork begins with.

Knows ids and text, no stream and no scheduler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.runtime.meaning import claim_of, max_len_of, params_of, wish_of
from headrace.runtime.parsers.pieces import Piece, TextPiece
from headrace.runtime.refusal import Refusal
from headrace.runtime.request import ForkPoint, Req

if TYPE_CHECKING:
    from headrace.runtime.interface import Ask, Prompt, Prompter, TextCutter, TextSplitter
    from headrace.runtime.stream import TokenStream


@dataclass(frozen=True, slots=True)
class ForkPlace:
    """How much of an answer its fork keeps: so many `tokens`, or so many `characters` of what was said (exactly one
    is given; thoughts do not count, and are kept with what follows them); then `text`, as if the model had written
    it."""

    tokens: int | None = None
    characters: int | None = None
    text: str = ""

    def __post_init__(self) -> None:
        assert (self.tokens is None) != (self.characters is None), "one place"


@dataclass(frozen=True, slots=True)
class Kept:
    """The first `shared` tokens of the answer, then `forced` ones."""

    shared: int
    forced: list[int]


def cut_answer(
    said: Sequence[int], place: ForkPlace, ask: Ask, prompter: Prompter, splitter: TextSplitter | None = None
) -> tuple[Kept, TextCutter, list[str]]:
    """What a fork of the answer `said` keeps, a cutter that has read it, and the text that each of its tokens made
    certain. Refusal("fork_point_invalid") if the answer does not reach that far, or if what is kept holds a stop
    string: such an answer would have ended before. splitter: what tells thoughts and calls from the text."""
    cutter = prompter.cutter(ask)
    pieces: list[str] = []
    if place.tokens is not None:
        if place.tokens > len(said):
            raise Refusal("fork_point_invalid", f"the answer has {len(said)} tokens so far")
        shared, rest = place.tokens, ""
    else:
        assert place.characters is not None
        shared, rest = _tokens_within(said, place.characters, ask, prompter, splitter)
    forced = prompter.tokenize(rest + place.text) if rest + place.text else []
    for token in [*said[:shared], *forced]:
        pieces.append(cutter.push(token))
        if cutter.matched is not None:
            raise Refusal("fork_point_invalid", "what is kept holds a stop string")
    return Kept(shared, forced), cutter, pieces


def _tokens_within(
    said: Sequence[int], characters: int, ask: Ask, prompter: Prompter, splitter: TextSplitter | None
) -> tuple[int, str]:
    """The most tokens whose text is all told and not longer than `characters`, and the text that is missing. A
    place inside a token is reached by writing the beginning of its text anew."""
    cutter = prompter.cutter(ask)
    raw = told = ""
    lengths = [(0, 0)]  # of the text that was certain after so many tokens, and of what of it was said
    for token in said:
        if len(told) > characters:
            break
        piece = cutter.push(token)
        raw += piece
        told += piece if splitter is None else _said(splitter.push(piece))
        lengths.append((len(raw), len(told)))
    rest = cutter.finish()
    raw += rest
    told += rest if splitter is None else _said([*splitter.push(rest), *splitter.finish()])
    if len(told) < characters:
        raise Refusal("fork_point_invalid", f"the answer has {len(told)} characters so far")
    shared = max(count for count, (_, length) in enumerate(lengths) if length <= characters)
    # Half a character, or the beginning of a stop string, may be held back behind what is certain.
    # Leading spaces are not compared: a tokenizer may put them there or not.
    while shared and prompter.detokenize(list(said[:shared])).lstrip(" ") != raw[: lengths[shared][0]].lstrip(
        " "
    ):
        shared -= 1
    return shared, told[lengths[shared][1] : characters]


def _said(pieces: Sequence[Piece]) -> str:
    return "".join([piece.text for piece in pieces if isinstance(piece, TextPiece)])


@dataclass(frozen=True, slots=True)
class Forked:
    """A request that begins as another one's answer does: how many of its tokens are kept (`shared`), and the text
    that each token of the answer so far made certain, read by `cutter`."""

    req: Req
    prompt: Prompt
    cutter: TextCutter
    pieces: list[str]
    shared: int


def fork_request(
    parent: TokenStream, at: ForkPlace, ask: Ask, prompter: Prompter, limit: int, req_id: int
) -> Forked:
    """The request of a fork of `parent`, ready to join. limit: tokens of prompt and answer. Raises Refusal."""
    source, prompt = parent.req, parent.prompt
    if source is None or prompt is None:
        raise Refusal("fork_point_invalid", "this answer has not begun")
    prompt_len = parent.prompt_tokens
    said = source.tokens[prompt_len : prompt_len + parent.said]
    kept, cutter, text = cut_answer(said, at, ask, prompter, prompter.splitter(ask, prompt))
    ids = source.tokens[: prompt_len + len(said[: kept.shared])] + kept.forced
    count = len(ids)
    max_len = max_len_of(ask, prompt_len, limit)
    if max_len <= count:
        raise Refusal("fork_point_invalid", "what is kept fills the whole length of the answer already")
    grammar = None if prompt.grammar is None else prompt.grammar.copy()
    if grammar is not None and not grammar.follow(ids[prompt_len:]):
        raise Refusal("fork_point_invalid", "what is kept is not what the answer has to look like")
    wish = wish_of(ask, prompt_len, prompter.logits_width)
    shares = ForkPoint(source, prompt_len + kept.shared)
    params = params_of(ask, prompter)
    req = Req(
        req_id, source.salt, ids, count, max_len, params, shares, wish, grammar, source.spans, claim_of(ask)
    )
    return Forked(req, prompt, cutter, text, kept.shared)
