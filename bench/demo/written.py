"""A dialogue as the model reads it: ids, positions in three axes, pictures, and which ids are learned."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from headrace.bench.demo.canvas import MERGE, patches
from headrace.bench.demo.dialogue import Dialogue
from headrace.bench.demo.layout import IMAGE, START, STOP, VISION_END, VISION_START, segments

IntArray = NDArray[np.int32]


@dataclass(frozen=True)
class Shown:
    """One picture: its patches, its grid in patches, and where its tokens begin."""

    patches: NDArray[np.uint8]
    rows: int
    columns: int
    start: int

    @property
    def tokens(self) -> int:
        return self.rows * self.columns // MERGE**2


@dataclass(frozen=True)
class Written:
    ids: IntArray
    learned: NDArray[np.bool_]
    shown: tuple[Shown, ...]
    answer_start: int  # where the last assistant message begins, after its role

    @cached_property
    def positions(self) -> IntArray:
        """[3, length]: time, height and width of every token, as M-RoPE counts them."""
        return positions(len(self.ids), self.shown)


def positions(length: int, shown: tuple[Shown, ...]) -> IntArray:
    """Text counts up in all three axes; a picture spans its grid and is as long as its longer side."""
    parts, at, now = [], 0, 0
    for picture in shown:
        parts.append(np.arange(now, now + picture.start - at)[None].repeat(3, 0))
        now += picture.start - at
        high, wide = picture.rows // MERGE, picture.columns // MERGE
        grid = np.indices((high, wide)).reshape(2, -1) + now
        parts.append(np.concatenate((np.full((1, high * wide), now), grid)))
        now += max(high, wide)
        at = picture.start + high * wide
    parts.append(np.arange(now, now + length - at)[None].repeat(3, 0))
    return np.concatenate(parts, 1).astype(np.int32)


class Writer:
    """Dialogues to ids, many at a time: one call of the tokenizer for all of their texts."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

        def token(content: str) -> int:
            found = tokenizer.token_to_id(content)
            assert found is not None, content
            return found

        self.start, self.stop = token(START), token(STOP)
        self._image = token(VISION_START), token(IMAGE), token(VISION_END)
        self._roles = {
            role: [self.start, *self.encode(f"{role}\n")] for role in ("system", "user", "assistant")
        }
        self._break = self.encode("\n")

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def write(self, dialogues: list[Dialogue]) -> list[Written]:
        """Every dialogue, whole, its last message closed."""
        turns = [list(segments(dialogue)) for dialogue in dialogues]
        texts = [text for each in turns for _, text, _, _ in each]
        encoded = iter(self._tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        found = []
        for each in turns:
            ids: list[int] = []
            learned: list[bool] = []
            shown: list[Shown] = []
            answer_start = 0
            for role, _, wanted, message in each:
                ids += self._roles[role]
                for picture in message.pictures:
                    cut, rows, columns = patches(picture)
                    first, pad, last = self._image
                    tokens = rows * columns // MERGE**2
                    shown.append(Shown(cut, rows, columns, len(ids) + 1))
                    ids += [first, *[pad] * tokens, last]
                learned += [False] * (len(ids) - len(learned))
                if wanted:
                    answer_start = len(ids)
                ids += next(encoded).ids
                ids.append(self.stop)
                learned += [wanted] * (len(ids) - len(learned))
                ids += self._break
                learned += [False] * len(self._break)
            found.append(Written(np.array(ids, np.int32), np.array(learned), tuple(shown), answer_start))
        return found
