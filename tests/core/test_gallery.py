"""Pictures in the core: who holds which rows, through chunks, cancels, pauses, NaNs and a pool that is too small.

The device of these tests keeps what was really encoded where. Every token of a picture must read its own row of its
own picture, whatever happened to the blocks in between; what a request says is a hash of everything it read.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from headrace.runtime.gallery import Gallery
from headrace.runtime.image import Image, ImageSpan
from headrace.runtime.plan import NON_FINITE, StepPlan, StepResult
from headrace.runtime.refusal import Refusal
from headrace.runtime.request import FinishReason, ForkPoint, Phase, Req, SamplingParams
from headrace.runtime.scheduler import Scheduler

PAD = 99
GREEDY = SamplingParams(temperature=0.0)


def picture(number: int, height: int, width: int) -> Image:
    return Image(-1 - number, height, width, (1, 1), b"\0\0\0")


def spread(parts: Sequence[list[int] | Image]) -> tuple[list[int], tuple[ImageSpan, ...]]:
    """A prompt of ids and pictures in turn."""
    tokens: list[int] = []
    spans: list[ImageSpan] = []
    for part in parts:
        if isinstance(part, Image):
            spans.append(ImageSpan(len(tokens), part))
            tokens += [PAD] * part.rows
        else:
            tokens += part
    return tokens, tuple(spans)


def content(tokens: Sequence[int], spans: Sequence[ImageSpan]) -> list[Any]:
    """What a model makes of a prompt: ids, and rows of pictures."""
    found: list[Any] = list(tokens)
    for span in spans:
        found[span.start : span.end] = [(span.image.key, row) for row in range(span.image.rows)]
    return found


def next_token(read: Sequence[Any]) -> int:
    return hash(tuple(read)) % 50


class Device:
    """Pages and blocks that hold what was written to them."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.size = scheduler.page_size
        self.block_rows = scheduler.gallery.block_rows
        self.pages: list[list[Any]] = [[None] * self.size for _ in range(scheduler.pool.count)]
        self.blocks: list[list[Any]] = [[None] * self.block_rows for _ in range(scheduler.gallery.blocks)]
        self.tables: dict[int, list[int]] = {}
        self.last: dict[int, int] = {}
        self.encodes = 0
        self.rows_of: dict[int, int] = {}
        self.stages = scheduler.gallery.stages
        self.whole = scheduler.gallery.whole
        self.going: tuple[int, tuple[int, ...], int] | None = (
            None  # the picture that is begun: key, blocks, stage
        )

    def run(self, plan: StepPlan, spoil: frozenset[int] = frozenset()) -> StepResult:
        for grant in plan.grants:
            self.tables[grant.slot] = list(grant.pages)
        for patch in plan.patches:
            self.tables[patch.slot].append(patch.page)
        for copy in plan.copies:
            self.pages[copy.target] = list(self.pages[copy.source])
        assert len(plan.encodes) <= 1
        for encode in plan.encodes:
            assert 0 <= encode.first < encode.last <= self.stages
            if encode.first:
                assert self.going == (encode.image.key, encode.blocks, encode.first)
            self.going = (encode.image.key, encode.blocks, encode.last)
            if encode.last < self.stages:
                continue
            self.going = None
            self.encodes += 1
            assert len(set(encode.blocks)) * self.block_rows >= encode.image.rows
            self.rows_of[encode.image.key] = encode.image.rows
            for row in range(encode.image.rows):
                block = encode.blocks[row // self.block_rows]
                self.blocks[block][row % self.block_rows] = (encode.image.key, row)
        sampled = []
        for row in plan.rows:
            fed: list[Any] = list(row.ids) if row.ids is not None else [self.last[row.slot]]
            covered = set()
            for part in row.images:
                for k in range(part.count):
                    index = part.first + k
                    assert fed[part.at + k] == PAD
                    fed[part.at + k] = self.blocks[part.blocks[index // self.block_rows]][
                        index % self.block_rows
                    ]
                    covered.add(part.at + k)
                if self.whole:
                    key, row_at = fed[part.at + part.count - 1]
                    assert row_at == part.first + part.count - 1 == self.rows_of[key] - 1, "a span was split"
            assert all((each == PAD) is False for each in fed), (
                "a placeholder was computed without its picture"
            )
            for k, each in enumerate(fed):
                at = row.start + k
                self.pages[self.tables[row.slot][at // self.size]][at % self.size] = each
            if row.sample:
                table = self.tables[row.slot]
                read = [
                    self.pages[table[at // self.size]][at % self.size] for at in range(row.start + row.count)
                ]
                token = NON_FINITE if row.req_id in spoil else next_token(read)
                self.last[row.slot] = max(token, 0)
                sampled.append(token)
        return StepResult(tuple(sampled))


@dataclass
class Life:
    """A scheduler over a device, `depth` steps in flight; `check()` after every verb."""

    scheduler: Scheduler
    depth: int = 1
    flight: deque[tuple[StepPlan, frozenset[int]]] = field(default_factory=deque)
    next_id: int = 0
    price: float = 1.0  # prompt tokens for each row of a picture

    def __post_init__(self) -> None:
        self.device = Device(self.scheduler)

    def add(
        self, parts: Sequence[list[int] | Image], count: int = 4, salt: str = "", fork: Any = None
    ) -> Req:
        tokens, spans = spread(parts)
        self.next_id += 1
        req = Req(self.next_id, salt, tokens, len(tokens), len(tokens) + count, GREEDY, fork, spans=spans)
        self.scheduler.add(req)
        self.scheduler.check()
        return req

    def plan(self, budget: int | None = None) -> StepPlan | None:
        """The next one; whatever it holds is within the budget."""
        plan = self.scheduler.plan(budget, lambda image: max(1, round(self.price * image.rows)))
        self.scheduler.check()
        if plan is None or not (plan.prefill or plan.encodes):
            return plan
        gallery = self.scheduler.gallery
        costs = [
            max(1, round(self.price * encode.image.rows)) * (encode.last - encode.first) / gallery.stages
            for encode in plan.encodes
        ]
        if plan.prefill_tokens + sum(costs) < (budget or self.scheduler.chunk_tokens) + 1:
            return plan
        # More only where nothing could be less: one stage of a picture, or one span that must be whole.
        if plan.encodes:
            [encode] = plan.encodes
            assert encode.last == encode.first + 1 and not plan.prefill, (
                "a chunk beside an encode that is too long"
            )
        else:
            [row] = plan.prefill
            assert gallery.whole and row.images[-1].at == 0 == row.count - row.images[-1].count
        return plan

    def step(self, spoil: frozenset[int] = frozenset()) -> bool:
        """Launch what can be launched; land the oldest. False if nothing could be done."""
        moved = False
        while len(self.flight) < self.depth and (plan := self.plan()) is not None:
            self.flight.append((plan, spoil))
            moved = True
        if self.flight:
            self.land()
            moved = True
        return moved

    def land(self) -> None:
        plan, spoil = self.flight.popleft()
        self.scheduler.retire(plan, self.device.run(plan, spoil))
        self.scheduler.check()

    def finish(self) -> None:
        steps = 0
        while self.step():
            steps += 1
            assert steps < 5000, "it never ends"
        assert self.scheduler.idle and self.scheduler.gallery.held_blocks == 0


def said(req: Req) -> list[int]:
    return req.tokens[req.prompt_len :]


def alone(req: Req) -> list[int]:
    """What a model says to this prompt that sees its pictures and nothing else."""
    read = content(req.tokens[: req.prompt_len], req.spans)
    answer: list[int] = []
    while len(read) < req.max_len:
        answer.append(next_token(read))
        read.append(answer[-1])
    return answer


def scheduler(pages: int = 40, size: int = 4, slots: int = 4, chunk: int = 16, **settings: Any) -> Scheduler:
    places = Gallery(
        settings.pop("image_blocks", 6),
        4,
        settings.pop("image_stages", 3),
        settings.pop("whole_pictures", False),
    )
    return Scheduler(pages, size, slots, chunk, gallery=places, **settings)


def test_one_picture_is_encoded_once_however_many_look_at_it() -> None:
    life = Life(scheduler(chunk=100))
    reqs = [life.add([[1, 2, number], picture(7, 3, 5), [3]]) for number in range(4)]
    life.finish()
    assert [said(req) for req in reqs] == [alone(req) for req in reqs]
    assert life.device.encodes == 1 == life.scheduler.gallery.encoded
    assert life.scheduler.gallery.reused == 3


def test_a_step_encodes_one_picture_and_its_rows_are_part_of_the_budget() -> None:
    life = Life(scheduler(chunk=16))
    life.add([[1] * 4, picture(1, 3, 4), picture(2, 2, 2), [5] * 9])
    first = life.scheduler.plan()
    assert first is not None and len(first.encodes) == 1
    assert first.prefill[0].count == 4, "12 of 16 tokens go to the picture"
    life.flight.append((first, frozenset()))
    second = life.scheduler.plan()
    assert second is not None and [encode.image.key for encode in second.encodes] == [-3]
    assert second.prefill[0].count == 12, "all of the first picture; four tokens go to the second one"
    life.flight.append((second, frozenset()))
    life.finish()


def test_who_finds_no_room_waits_for_those_who_have_it() -> None:
    life = Life(scheduler(image_blocks=2, chunk=7, slots=3), depth=2)
    reqs = [
        life.add([[number], picture(number, 2, 4), [1, 2], picture(number + 50, 1, 7)]) for number in range(6)
    ]
    life.finish()
    assert [said(req) for req in reqs] == [alone(req) for req in reqs]


def test_a_picture_that_never_fits_is_refused() -> None:
    life = Life(scheduler(image_blocks=2))
    with pytest.raises(Refusal, match="takes 9 tokens; this server has room for 8"):
        life.add([[1], picture(1, 3, 3)])
    with pytest.raises(Refusal, match="room for 0"):
        Life(Scheduler(8, 4, 2, 8)).add([[1], picture(1, 1, 1)])


def test_a_picture_inside_a_cached_prefix_is_not_encoded() -> None:
    life = Life(scheduler(chunk=64))
    first = life.add([[1, 2], picture(3, 2, 5), [4, 5, 6, 7]])
    life.finish()
    life.scheduler.gallery.clear()
    again = life.add([[1, 2], picture(3, 2, 5), [4, 5, 6, 7]])
    life.finish()
    assert life.device.encodes == 1 and again.cached_len == 12
    assert said(again) == said(first) == alone(again)
    # The same tokens with another picture, and of another tenant, share nothing of it.
    other = life.add([[1, 2], picture(4, 2, 5), [4, 5, 6, 7]])
    foreign = life.add([[1, 2], picture(3, 2, 5), [4, 5, 6, 7]], salt="b")
    life.finish()
    assert other.cached_len == 0 == foreign.cached_len and said(other) == alone(other) != said(first)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("verb", ["cancel", "pause", "retract"])
def test_a_verb_at_every_point_of_a_life(verb: str, depth: int) -> None:
    """Also while the picture's encode is in flight; its neighbours never notice."""
    for point in range(24):
        life = Life(scheduler(image_blocks=3, chunk=5), depth)
        victim = life.add([[1], picture(1, 2, 4), [2, 3], picture(2, 1, 9), [4]])
        neighbour = life.add([[8], picture(1, 2, 4), [9], picture(3, 2, 2)])
        for turn in range(point):
            # Launched and not landed at every other point.
            if turn % 2 or not life.flight:
                plan = life.scheduler.plan() if len(life.flight) < depth else None
                if plan is not None:
                    life.flight.append((plan, frozenset()))
                    continue
            if life.flight:
                life.land()
        if victim.finish is None and victim.phase is not Phase.DONE:
            if verb == "cancel":
                life.scheduler.cancel(victim)
            elif verb == "pause":
                life.scheduler.pause(victim)
            elif victim.pages:
                life.scheduler._retract(victim)
            life.scheduler.check()
        life.finish()
        if verb == "pause":
            life.scheduler.resume(victim)
            life.finish()
        assert said(neighbour) == alone(neighbour)
        if victim.finish is not FinishReason.CANCELLED:
            assert said(victim) == alone(victim)
        assert life.scheduler.pages_in_use == 0


def test_a_nan_condemns_the_pictures_that_its_request_read() -> None:
    life = Life(scheduler(chunk=64))
    bad = life.add([[1], picture(1, 2, 4)])
    life.step(frozenset({bad.id}))
    life.finish()
    assert bad.finish is FinishReason.ERROR
    good = life.add([[1], picture(1, 2, 4)])
    life.finish()
    assert life.device.encodes == 2, "its rows may be why: they are made again"
    assert good.cached_len == 0 and said(good) == alone(good)


def test_a_fork_in_the_middle_of_a_picture() -> None:
    life = Life(scheduler(chunk=64, pages=90))
    parts = [[1, 2], picture(5, 3, 3), [4], picture(6, 1, 3)]
    parent = life.add(parts, 200)
    for _ in range(3):
        life.step()
    children = []
    for at in range(1, parent.prompt_len + 1):
        child = life.add(parts, 3, fork=ForkPoint(parent, at))
        children.append(child)
        while child.phase is not Phase.DONE:
            assert life.step()
    life.finish()
    assert [said(child) for child in children] == [alone(child) for child in children]


@pytest.mark.parametrize("seed", range(60))
def test_lives_drawn_by_lot(seed: int) -> None:
    rng = random.Random(seed)
    life = Life(
        scheduler(
            pages=rng.choice((20, 30, 60)),
            size=rng.choice((1, 2, 4, 8)) if seed % 3 else 4,
            slots=rng.choice((1, 2, 4)),
            chunk=rng.choice((1, 3, 8, 40)),
            image_blocks=rng.choice((3, 4, 8)),
            image_stages=rng.choice((1, 3, 5)),
            whole_pictures=seed % 2 == 1,
            prefix_cache=rng.random() < 0.8,
            ahead_tokens=rng.choice((0, 8)),
        ),
        depth=rng.choice((1, 2, 3)),
        price=rng.choice((1, 1, 0.2, 7)),
    )
    gallery = [picture(number, *rng.choice(((2, 2), (1, 5), (3, 3), (3, 4), (1, 1)))) for number in range(5)]
    reqs: list[Req] = []
    limit = life.scheduler.max_tokens
    for _ in range(rng.randint(3, 12)):
        parts: list[list[int] | Image] = [[rng.choice((1, 1, 2))] * rng.randint(1, 3)]
        for _ in range(rng.randint(0, 3)):
            parts += [rng.choice(gallery), [rng.choice((3, 3, 4))] * rng.randint(0, 2)]
        tokens, _ = spread(parts)
        count = rng.randint(1, 6)
        if len(tokens) + count > limit:
            continue
        reqs.append(life.add(parts, count, salt=rng.choice("aab")))
        for _ in range(rng.randint(0, 4)):
            life.step()
            live = [req for req in life.scheduler.reqs() if req.finish is None]
            kind = rng.random()
            if live and kind < 0.1:
                life.scheduler.cancel(rng.choice(live))
            elif live and kind < 0.2:
                life.scheduler.pause(rng.choice(live))
            elif kind < 0.3:
                life.scheduler.flush_cache()
            for req in list(life.scheduler.paused.values()):
                if rng.random() < 0.5:
                    life.scheduler.resume(req)
            life.scheduler.check()
    while life.step() or life.scheduler.paused:
        for req in list(life.scheduler.paused.values()):
            life.scheduler.resume(req)
    for req in reqs:
        if req.finish is not FinishReason.CANCELLED:
            assert said(req) == alone(req)
    life.scheduler.flush_cache()
    life.scheduler.check()
    assert life.scheduler.pool.used_count == 0
    assert life.scheduler.gallery.held_blocks == 0 and not life.scheduler.gallery._cached


def test_a_long_encode_goes_on_stage_by_stage_and_streams_beside_it_go_on() -> None:
    """Three stages of ten tokens each and steps of eight: no chunk stands beside a stage, and nobody else waits."""
    life = Life(scheduler(chunk=8, prefix_cache=False), price=3)
    reader = life.add([[1, 2]], 30)
    life.step()
    shown = life.add([[3], picture(1, 2, 5), [4]])
    seen: list[tuple[int, int, int]] = []
    while said(reader) != alone(reader):
        plan = life.plan()
        assert plan is not None
        seen.append((len(plan.decode), plan.prefill_tokens, sum(e.last - e.first for e in plan.encodes)))
        life.flight.append((plan, frozenset()))
        life.land()
    assert seen[:6] == [(1, 1, 0), (1, 0, 1), (1, 0, 1), (1, 0, 1), (1, 8, 0), (1, 3, 0)]
    assert said(shown) == alone(shown) and all(decode for decode, _, _ in seen)


def test_several_pictures_are_spread_over_steps() -> None:
    life = Life(scheduler(chunk=16, pages=90, image_blocks=9, image_stages=4))
    reqs = [life.add([[number], picture(number, 3, 4), [1]]) for number in range(3)]
    steps: list[list[int]] = []
    while (plan := life.plan()) is not None:
        steps.append([encode.image.rows * (encode.last - encode.first) // 4 for encode in plan.encodes])
        life.flight.append((plan, frozenset()))
        life.land()
    assert all(sum(rows) <= 16 for rows in steps) and sum(map(len, steps)) >= 3
    assert [said(req) for req in reqs] == [alone(req) for req in reqs]


def test_who_takes_over_a_picture_that_was_begun_goes_on_with_it() -> None:
    life = Life(scheduler(chunk=4), price=2)
    first = life.add([[1], picture(1, 2, 4), [2]])
    for _ in range(3):
        life.step()
    assert life.device.going is not None and life.device.going[2] < 3
    stage = life.device.going[2]
    life.scheduler.cancel(first)
    life.scheduler.check()
    second = life.add([[5], picture(1, 2, 4), [2]])
    life.finish()
    assert said(second) == alone(second) and life.device.encodes == 1 and stage > 0


def test_a_picture_that_was_begun_for_nobody_is_forgotten_for_another() -> None:
    life = Life(scheduler(chunk=4), price=2)
    first = life.add([[1], picture(1, 2, 4), [2]])
    for _ in range(3):
        life.step()
    life.scheduler.cancel(first)
    other = life.add([[1], picture(2, 2, 4), [2]])
    again = life.add([[1], picture(1, 2, 4), [2]])
    life.finish()
    assert said(other) == alone(other) and said(again) == alone(again) and life.device.encodes == 2


@pytest.mark.parametrize("chunk", [1, 3, 7, 50])
def test_a_span_that_is_whole_is_never_split(chunk: int) -> None:
    """Not by a chunk, not by a prefix hit, not by a fork in its middle."""
    life = Life(scheduler(chunk=chunk, pages=90, whole_pictures=True, image_stages=2), depth=2)
    parts: list[list[int] | Image] = [[1, 2], picture(5, 3, 3), picture(6, 2, 3), [4]]
    parent = life.add(parts, 60)
    while not said(parent):
        life.step()
    children = [life.add(parts, 3, fork=ForkPoint(parent, at)) for at in range(1, parent.prompt_len + 1, 3)]
    life.finish()
    life.scheduler.gallery.clear()
    hit = life.add([*parts, [9]])
    life.finish()
    assert hit.cached_len == 16, "inside of the second picture"
    assert [said(req) for req in (parent, hit, *children)] == [alone(req) for req in (parent, hit, *children)]
