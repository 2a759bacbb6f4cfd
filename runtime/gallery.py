"""Which pictures are encoded, in which rows of the device, and who reads them. Integers only.

Who holds an exhibit, from birth to end:

    claimed for the Req whose chunk comes to it first; encoded, in one step
    or stage by stage in several                                                that Req
    another Req comes to a span of the same picture                             both
    a Req's row behind the span has landed, or the Req leaves the batch         the others
    nobody holds it                                                             cached, oldest evicted first
    nobody holds it, and it is unfinished                                       cached, until another one begins
    a row of one of its readers was not finite                                  never found again

Steps run in order, so an exhibit may be read, and its blocks given to another picture, by later steps than the one
that encodes it without waiting for that one to land.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable

from headrace.runtime.image import Image
from headrace.runtime.plan import ImageEncode, ImageRows, OpenPlan
from headrace.runtime.refusal import Refusal
from headrace.runtime.request import Req


class Exhibit:
    """One picture, encoded or on the way. `blocks`, in order, hold its rows once no stage is `left`; `found`: later
    requests may find it."""

    __slots__ = ("blocks", "found", "holders", "key", "left")

    def __init__(self, key: int, blocks: tuple[int, ...], left: int) -> None:
        self.key = key
        self.blocks = blocks
        self.left = left
        self.holders = 0
        self.found = True


class Gallery:
    """Blocks 0..blocks-1 of `block_rows` rows each. A picture takes whole blocks, in any places.

    stages: an encode may be cut into so many pieces of equal price. whole: the tokens of a picture read each other,
    so that a chunk which enters its span goes to the span's end. (Where the chunk begins is free: a prefix hit that
    ends inside of a span left keys and values behind that were computed with all of it in view.)"""

    __slots__ = (
        "_cached", "_exhibits", "_free", "_unfinished", "block_rows", "blocks", "encoded", "reused", "stages",
        "whole",
    )  # fmt: skip

    def __init__(self, blocks: int, block_rows: int, stages: int = 1, whole: bool = False) -> None:
        assert blocks >= 0 and block_rows >= 1 and stages >= 1
        self.blocks = blocks
        self.block_rows = block_rows
        self.stages = stages
        self.whole = whole
        self._unfinished: Exhibit | None = None  # the one picture that is begun and not done
        self.encoded = 0  # pictures
        self.reused = 0  # times that a picture was found encoded
        self._free = list(range(blocks))  # a heap; sorted is one
        self._exhibits: dict[int, Exhibit] = {}  # by key: those that can be found
        self._cached: OrderedDict[int, Exhibit] = OrderedDict()  # those that nobody holds, oldest first

    @property
    def rows(self) -> int:
        """Rows of the largest picture that fits."""
        return self.blocks * self.block_rows

    @property
    def held_blocks(self) -> int:
        return self.blocks - len(self._free) - sum(len(exhibit.blocks) for exhibit in self._cached.values())

    def check_sizes(self, req: Req) -> None:
        """Raise Refusal for a picture that will never fit."""
        for span in req.spans:
            if span.image.rows > self.rows:
                what = f"a picture takes {span.image.rows} tokens; this server has room for {self.rows}"
                raise Refusal("invalid_value", what)

    def can_start(self, req: Req, start: int, step: OpenPlan) -> bool:
        """True if a row of `req` that begins at token `start` could read at least that token now, or its picture be
        encoded."""
        for span in req.spans:
            if span.start <= start < span.end:
                return span.image.key in self._exhibits or self._may_begin(span.image, step)
        return True

    def look(self, req: Req, start: int, count: int, step: OpenPlan) -> tuple[int, tuple[ImageRows, ...]]:
        """How many of the `count` tokens from `start` can be computed in this step, and which image rows they read.

        What is not encoded yet is encoded in `step`, as far as its room goes, one picture at most. Whatever cannot
        be read ends the chunk before it. A span that must be whole may take more than the room, in a step that
        holds no other prompt and encodes nothing: else a large one would wait for ever."""
        end = start + count
        read: list[ImageRows] = []
        for index, span in enumerate(req.spans):
            if span.end <= start:
                continue
            if span.start >= end:
                break
            first = max(start, span.start)
            exhibit = self._find(req, index, first - start, step)
            end = min(end, start + max(0, step.room))
            if exhibit is None or exhibit.left:
                end = min(end, first)
                break
            if self.whole and span.end > end:
                if first > start or not step.fresh:
                    end = min(end, first)
                    break
                end = span.end
            last = min(span.end, end)
            if last > first:
                read.append(ImageRows(first - start, last - first, first - span.start, exhibit.blocks))
        return end - start, tuple(read)

    def passed(self, req: Req) -> None:
        """The KV of `req` up to `landed_len` is there: it needs no picture any more that lies before."""
        for index in [index for index in req.exhibits if req.spans[index].end <= req.landed_len]:
            self._let_go(req.exhibits.pop(index))

    def leave(self, req: Req) -> None:
        """`req` reads nothing any more."""
        for exhibit in req.exhibits.values():
            self._let_go(exhibit)
        req.exhibits.clear()

    def condemn(self, req: Req) -> None:
        """A row of `req` was not finite, and a picture may be why: nobody finds those it has read again."""
        for span in req.spans:
            exhibit = self._exhibits.pop(span.image.key, None)
            if exhibit is not None:
                exhibit.found = False
                if self._cached.pop(exhibit.key, None) is not None:
                    self._free_blocks(exhibit)

    def clear(self) -> int:
        """Forget every picture that nobody holds; how many."""
        count = len(self._cached)
        while self._cached:
            self._evict()
        return count

    def check(self, reqs: Iterable[Req]) -> None:
        """Raise AssertionError unless blocks add up and every holder is counted. reqs: all live ones."""
        holders: dict[int, int] = {}
        seen: dict[int, Exhibit] = {id(exhibit): exhibit for exhibit in self._exhibits.values()}
        for req in reqs:
            for index, exhibit in req.exhibits.items():
                assert exhibit.key == req.spans[index].image.key, (
                    "a request reads another picture than its own"
                )
                holders[id(exhibit)] = holders.get(id(exhibit), 0) + 1
                seen[id(exhibit)] = exhibit
        used: list[int] = []
        for name, exhibit in seen.items():
            assert exhibit.holders == holders.get(name, 0), "a picture's holders are miscounted"
            assert exhibit.found == (self._exhibits.get(exhibit.key) is exhibit)
            if not exhibit.holders:
                assert self._cached.get(exhibit.key) is exhibit, "a picture that nobody holds is not cached"
            used += exhibit.blocks
        assert all(exhibit.holders == 0 and exhibit.found for exhibit in self._cached.values())
        unfinished = [exhibit for exhibit in seen.values() if exhibit.left]
        assert unfinished in ([], [self._unfinished]), "two pictures are begun at one time"
        assert sorted(used + self._free) == list(range(self.blocks)), "a block is lost or used twice"

    def _find(self, req: Req, index: int, before: int, step: OpenPlan) -> Exhibit | None:
        """The picture of span `index`, held for `req` and brought as far as `step` allows; None: it has to wait.
        before: tokens of the chunk that come first, and keep their room."""
        image = req.spans[index].image
        exhibit = req.exhibits.get(index)
        if exhibit is None:
            exhibit = self._exhibits.get(image.key)
            if exhibit is not None:
                self.reused += 1
            elif self._may_begin(image, step, before):
                exhibit = self._claim(image)
            else:
                return None
            self._hold(exhibit)
            req.exhibits[index] = exhibit
        if exhibit.left:
            self._advance(exhibit, image, before, step)
        return exhibit

    def _may_begin(self, image: Image, step: OpenPlan, before: int = 0) -> bool:
        """Could a stage of a picture that nobody has begun be computed in `step`?"""
        begun = self._unfinished is not None and self._unfinished.holders > 0
        return not begun and self._fits(image) and self._affordable(image, before, step) > 0

    def _affordable(self, image: Image, before: int, step: OpenPlan) -> int:
        """Stages of `image` that `step` has room for behind `before` tokens; one in any case where nothing of a
        prompt comes first: else a large picture would wait for ever."""
        if step.encodes:
            return 0
        fitting = max(0, step.room - before) * self.stages // max(1, step.price(image))
        return max(fitting, int(step.fresh and not before))

    def _advance(self, exhibit: Exhibit, image: Image, before: int, step: OpenPlan) -> None:
        count = min(exhibit.left, self._affordable(image, before, step))
        if not count:
            return
        done = self.stages - exhibit.left
        # Part by part: together they take what the whole would.
        price = step.price(image)
        cost = price * (done + count) // self.stages - price * done // self.stages
        step.encode(ImageEncode(image, exhibit.blocks, done, done + count), cost)
        exhibit.left -= count
        self._unfinished = exhibit if exhibit.left else None
        if not exhibit.left:
            self.encoded += 1

    def _needed(self, image: Image) -> int:
        return -(-image.rows // self.block_rows)

    def _fits(self, image: Image) -> bool:
        return self._needed(image) <= self.blocks - self.held_blocks

    def _claim(self, image: Image) -> Exhibit:
        """Blocks for a picture that is encoded now. The caller has seen that it fits."""
        needed = self._needed(image)
        if self._unfinished is not None:  # begun for somebody who has left: the device forgets it now
            abandoned = self._unfinished
            assert not abandoned.holders
            del self._cached[abandoned.key], self._exhibits[abandoned.key]
            abandoned.found = False
            self._free_blocks(abandoned)
        while len(self._free) < needed:
            self._evict()
        blocks = tuple(heapq.heappop(self._free) for _ in range(needed))
        exhibit = self._exhibits[image.key] = Exhibit(image.key, blocks, self.stages)
        return exhibit

    def _evict(self) -> None:
        key, oldest = self._cached.popitem(last=False)
        del self._exhibits[key]
        oldest.found = False
        self._free_blocks(oldest)

    def _hold(self, exhibit: Exhibit) -> None:
        exhibit.holders += 1
        if exhibit.holders == 1:
            self._cached.pop(exhibit.key, None)

    def _let_go(self, exhibit: Exhibit) -> None:
        exhibit.holders -= 1
        assert exhibit.holders >= 0
        if exhibit.holders:
            return
        if exhibit.found:
            self._cached[exhibit.key] = exhibit
        else:
            self._free_blocks(exhibit)

    def _free_blocks(self, exhibit: Exhibit) -> None:
        if exhibit is self._unfinished:
            self._unfinished = None
        for block in exhibit.blocks:
            heapq.heappush(self._free, block)
