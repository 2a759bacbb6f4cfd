"""The ids of a prompt whose last message is still being typed. Knows text and tokenizers; no request, no event
loop.

What is read is a guess: the whole prompt is tokenized once, at the end, and what was computed for a wrong guess
is cut off. So here only speed is at stake, never an id. The guess is nearly always right: the last word, which
the next key may change, is held back, and a change is read again from well before its place.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from headrace.runtime.image import Image, ImageSpan
from headrace.runtime.woven import Woven

if TYPE_CHECKING:
    from headrace.runtime.ask import Ask
    from headrace.runtime.interface import Prompter
    from headrace.runtime.prompt import FolderPrompter
    from headrace.runtime.tokenizer import FolderTokenizer

WORD = 32  # characters of a word that are held back; scripts without spaces have no end of a word
BEFORE = 64  # characters in front of a change that are read again with it
AGREED = 4  # tokens in a row that two readings must share before one goes on where the other ended
_PROBES = ("qzjxkvwq", "vwkqjxzv")  # no template knows these words


@dataclass(frozen=True, slots=True)
class TypedIds:
    """What is certain of a prompt so far: its first ids, where pictures stand among them, and how many
    characters of the typed text they reach."""

    ids: list[int]
    spans: tuple[ImageSpan, ...]
    characters: int


class TypedPrompt(Protocol):
    """One message that is typed behind a fixed conversation. Calls come one at a time, in any thread."""

    def read(self, text: str) -> TypedIds:
        """The message is `text` now. Raises Refusal where the conversation itself is refused."""


def settled(text: str) -> int:
    """How many characters of `text` no further one is likely to change the tokens of: all but the last word,
    and the spaces around it."""
    end = len(text)
    low = max(0, end - WORD)
    while end > low and text[end - 1].isspace():
        end -= 1
    low = max(0, end - WORD)
    while end > low and not text[end - 1].isspace():
        end -= 1
    while end > low and text[end - 1].isspace():
        end -= 1
    return end


def with_last(ask: Ask, text: str) -> Ask:
    """The ask whose last message says `text`."""
    assert ask.messages
    return replace(ask, messages=(*ask.messages[:-1], replace(ask.messages[-1], content=text)))


class WholePrompt:
    """Tokenizes all of it, twice, whenever it is asked: what both readings share is certain. For prompts that
    cannot be read piece by piece."""

    def __init__(self, prompter: Prompter, ask: Ask) -> None:
        self._prompter = prompter
        self._ask = ask

    def read(self, text: str) -> TypedIds:
        sure = settled(text)
        one = self._prompter.prepare(with_last(self._ask, text[:sure]))
        other = self._prompter.prepare(with_last(self._ask, text if sure < len(text) else text + " x"))
        count = 0
        for mine, theirs in zip(one.ids, other.ids, strict=False):
            if mine != theirs:
                break
            count += 1
        # A picture is never certain in part: its ids say nothing of what they show.
        for span, there in zip(one.spans, (*other.spans, *(None,) * len(one.spans)), strict=False):
            if there is None or (span.start, span.image.key) != (there.start, there.image.key):
                count = min(count, span.start)
        spans = tuple(span for span in one.spans if span.end <= count)
        count = min([count, *(span.start for span in one.spans if span.end > count)])
        return TypedIds(list(one.ids[:count]), spans, sure)


class PiecedPrompt:
    """Renders the conversation once and tokenizes only what changed, for the chat template and tokenizer of a
    folder. Falls back to WholePrompt where a template does more to the typed text than to cut its spaces."""

    def __init__(self, prompter: FolderPrompter, tokenizer: FolderTokenizer, ask: Ask) -> None:
        self._prompter = prompter
        self._tokenizer = tokenizer
        self._ask = ask
        self._images: list[Image] = []
        self._whole: WholePrompt | None = None
        self._begun = False
        self._head = ""  # what the template writes before the typed text
        self._left = self._right = False  # which spaces of the typed text it cuts
        self._firm = 0  # tokens of the head that nothing typed behind it can change
        self._text = ""  # as it was read last, in the template's place
        self._ids: list[int] = []  # of head and text
        self._places: list[tuple[int, int]] = []  # characters of each
        self._ends: list[int] = []

    def read(self, text: str) -> TypedIds:
        if not self._begun:
            self._begin()
            self._begun = True
        if self._whole is not None:
            return self._whole.read(text)
        cut = len(text) - len(text.lstrip()) if self._left else 0
        text = text[cut:].rstrip() if self._right else text[cut:]
        # A string that spells a special token is read otherwise, and so is, perhaps, what stands before it.
        text = text[: self._tokenizer.plain_until(text)]
        self._follow(text)
        rendered = self._head + text
        sure = settled(rendered)
        count = max(self._firm, bisect_right(self._ends, sure))
        laid, spans = self._prompter.lay(self._ids[:count], self._images)
        return TypedIds(laid, spans, cut + max(0, sure - len(self._head)))

    def _begin(self) -> None:
        """Find where the typed text will stand. Raises Refusal as `prepare` does."""
        prompter, ask = self._prompter, self._ask
        assert ask.messages
        last = ask.messages[-1]
        pictures = prompter.pictures_of(ask)
        if any(picture.at for picture in last.pictures):
            self._whole = WholePrompt(prompter, ask)
            return
        one, other = _PROBES
        first = prompter.rendered(with_last(ask, one))
        place = first.find(one)
        second = prompter.rendered(with_last(ask, f"\n {other} \n"))
        head, tail = first[:place], first[place + len(one) :]
        found = None
        for left in (False, True):
            for right in (False, True):
                shown = ("" if left else "\n ") + other + ("" if right else " \n")
                if place >= 0 and one not in tail and second == head + shown + tail:
                    found = left, right
        if found is None or isinstance(first, Woven):  # or the conversation spells special tokens: see Woven
            self._whole = WholePrompt(prompter, ask)
            return
        self._left, self._right = found
        self._head = head
        self._images = [prompter.read_image(ask, picture) for picture in pictures]
        self._ids, self._places = self._tokenizer.encode_places(head)
        self._ends = [end for _, end in self._places]
        controls = [at for at, each in enumerate(self._ids) if self._tokenizer.is_control(each)]
        self._firm = controls[-1] + 1 if controls else 0

    def _follow(self, text: str) -> None:
        """`_ids` become those of the head and `text`."""
        shared = _shared(self._text, text)
        if shared == len(text) == len(self._text):
            return
        self._text = text
        rendered, at = self._head + text, len(self._head) + shared
        first = self._restart(rendered, at)
        if first:
            start = self._places[first][0]
            ids, places = self._tokenizer.encode_places(rendered[start:])
            joint = self._joint(first, start, at, ids, places)
            if joint is not None:
                old, new = joint
                self._ids[old:] = ids[new:]
                self._places[old:] = [(low + start, high + start) for low, high in places[new:]]
                self._ends[old:] = [high + start for _, high in places[new:]]
                return
        self._ids, self._places = self._tokenizer.encode_places(rendered)
        self._ends = [end for _, end in self._places]

    def _restart(self, rendered: str, at: int) -> int:
        """The index of a token from which to read again: it begins a word well before the change, if one does."""
        index = bisect_right(self._ends, max(0, at - BEFORE))
        lowest = bisect_right(self._ends, max(0, at - 4 * BEFORE))
        for each in range(min(index, len(self._places) - 1), lowest, -1):
            start = self._places[each][0]
            if start > 0 and start >= self._ends[each - 1] and rendered[start].isspace():
                return each
        return max(0, min(lowest, len(self._places) - 1))

    def _joint(
        self, first: int, start: int, at: int, ids: list[int], places: list[tuple[int, int]]
    ) -> tuple[int, int] | None:
        """Where the old tokens end and the new ones go on: (old index, new index) of the first of AGREED tokens
        in a row that are the same in both, before the change. None if the two never agree for so long."""
        old, new, agreed = first, 0, 0
        while old < len(self._places) and new < len(places) and self._ends[old] <= at:
            here, there = self._places[old], (places[new][0] + start, places[new][1] + start)
            if here == there and self._ids[old] == ids[new]:
                agreed += 1
                old, new = old + 1, new + 1
                if agreed == AGREED:
                    return old - AGREED, new - AGREED
                continue
            agreed = 0
            if here[1] <= there[1]:
                old += 1
            if there[1] <= here[1]:
                new += 1
        return None


def _shared(one: str, other: str) -> int:
    """The length of the common beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
