"""Prompts that are read ahead while they are typed, at the Runtime (M5): steps are counted, never timed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from fake_prompter import BytePrompter
from typing_bench import TypingBench, run
from vision_rig import noise, png

from headrace.runtime import drafting
from headrace.runtime.blueprint import Blueprint
from headrace.runtime.demo_checkpoint import demo_folder
from headrace.runtime.interface import Ask, FinishReason, Message, Picture, Refusal, Tenant, TokenStream
from headrace.runtime.prompt import FolderPrompter

WIDTH = 4096


@pytest.fixture(scope="module")
def demo() -> FolderPrompter:
    return FolderPrompter(demo_folder(), WIDTH, WIDTH)


@pytest.fixture
async def bench(demo: FolderPrompter) -> Any:
    made = TypingBench(demo, WIDTH)
    yield made
    made.runtime.close()


@pytest.fixture
async def small() -> Any:
    """Bytes as tokens, and few pages."""
    made = TypingBench(BytePrompter(), 256, page_count=40, slots=4)
    yield made
    made.runtime.close()


LONG = tuple(
    Message(role, "The water of the river turns the wheel of the mill, and the wheel turns the stone. " * 12)
    for role in ("user", "assistant") * 3
)
# As a person typed it: what stood there after each key or paste. Pauses are marked: there the typist thinks.
PAUSE = "…pause"
TRACE = (
    "W", "Wh", "Why", "Why ", "Why do", "Why does", "Why does th", "Why does the", PAUSE,
    "Why does the weel", "Why does the w", "Why does the wheel turn", PAUSE,
    "Why, in winter, does the wheel turn", "Why, in winter, does the wheel turn slowly?", PAUSE,
    "Why, in winter, does the wheel turn slowly? I read this:\n\n" + "The ice is thick. " * 30,
    "Why, in winter, does the wheel turn slowly? I read this:\n\n" + "The ice is thick. " * 12,
    "Why, in cold winters, does the wheel turn slowly? I read this:\n\n" + "The ice is thick. " * 12, PAUSE,
    "Why, in cold winters, does the wheel turn slowly? I read this:\n\n" + "The ice is thick. " * 12 + "So?", PAUSE,
)  # fmt: skip


def asked(text: str, history: tuple[Message, ...] = LONG, **fields: Any) -> Ask:
    fields = {"max_tokens": 6, "seed": 3, "ignore_eos": True, **fields}
    return Ask(messages=(*history, Message("user", text)), **fields)


async def test_a_recorded_trace_is_answered_within_two_steps_as_in_one_shot(bench: TypingBench) -> None:
    draft = bench.open(asked(""))
    text = ""
    for each in TRACE:
        if each is PAUSE:
            await bench.rested(draft)
            continue
        text = each
        bench.drafting.write(draft, asked(text))
        bench.engine.land(1)
        await asyncio.sleep(0)
    prompt = bench.prompter.prepare(asked(text)).ids
    assert len(prompt) > 1000 and draft.stable > len(prompt) - 24
    steps = len(bench.engine.plans)
    stream = bench.drafting.send(draft, asked(text), lambda stream: None)
    await bench.until(lambda: stream.head)
    assert len(bench.engine.plans) - steps <= 2, "the first token came within two steps"
    assert stream.req is not None and tuple(stream.req.tokens[: len(prompt)]) == prompt
    assert await bench.answer(stream) == bench.alone(asked(text))
    outcome = draft.outcome
    assert outcome is not None and outcome.wasted > 0 and outcome.used > 1000
    assert outcome.computed == bench.scheduler.drafts.computed == outcome.used + outcome.wasted
    stats = bench.runtime.stats()
    assert stats["draft_tokens_wasted"] == outcome.wasted and stats["drafts"] == 0
    assert stats["drafts_sent"] == stats["drafts_opened"] == 1
    await bench.empty()


async def test_what_was_sent_is_found_by_the_next_turn_and_read_no_second_time(bench: TypingBench) -> None:
    draft = bench.open(asked("why does the wheel turn in the water of the mill"))
    await bench.rested(draft)
    stream = bench.drafting.send(draft, draft.ask, lambda stream: None)
    said = await bench.answer(stream)
    spent = bench.scheduler.drafts.computed
    history = (*draft.ask.messages, Message("assistant", bench.prompter.detokenize(said)))  # type: ignore[misc]
    second = bench.open(asked("and then", history))
    await bench.rested(second)
    assert bench.scheduler.drafts.computed - spent < 64, "the cache had the conversation"
    assert bench.drafting.ready(second) > 1000
    bench.drafting.drop(second)
    await bench.empty()


async def test_random_scripts_end_in_the_ids_of_one_shot(demo: FolderPrompter) -> None:
    """`python -P tests/typing_bench.py --scripts 10000` is the whole number."""
    bench = TypingBench(demo, WIDTH, slots=4)
    stats = await run(bench, range(40))
    assert stats["drafts_sent"] == 40 and stats["draft_tokens_used"] > stats["draft_tokens_wasted"] > 0
    bench.runtime.close()


async def test_others_never_lose_a_token_of_their_budget_to_a_draft(small: TypingBench) -> None:
    """The same requests, at the same steps, beside a draft and without one: their rows are the same."""

    async def rows(bench: TypingBench, typing: bool) -> list[Any]:
        draft = None
        if typing:
            draft = bench.open(asked("t" * 200, history=()))
            await bench.read(draft)
        streams: list[TokenStream] = []
        first = len(bench.engine.plans)
        for text, count in (("a" * 100, 30), ("b" * 10, 40), ("c" * 150, 10)):
            streams.append(bench.runtime.open(asked(text, (), max_tokens=count), lambda stream: None))
            await bench.until(lambda: streams[-1].head >= 2)
        await bench.until(lambda: all(stream.finish is not None for stream in streams))
        names = {stream.req.id: index for index, stream in enumerate(streams) if stream.req is not None}
        found = []
        for plan in bench.engine.plans[first:]:
            ours = [row for row in plan.rows if row.req_id in names]
            if ours:
                found.append([(names[row.req_id], row.start, row.count) for row in ours])
        if draft is not None:
            assert bench.scheduler.drafts.computed > 0
            bench.drafting.drop(draft)
        await bench.empty()
        return found

    alone = TypingBench(BytePrompter(), 256, page_count=40, slots=4)
    assert await rows(small, typing=True) == await rows(alone, typing=False)
    alone.runtime.close()


async def test_a_draft_rests_beside_others_and_runs_when_nobody_else_does(small: TypingBench) -> None:
    stream = small.runtime.open(asked("a", (), max_tokens=250), lambda stream: None)
    await small.until(lambda: stream.head)
    draft = small.open(asked("word " * 50, ()))
    await small.read(draft)
    before = len(small.engine.plans)
    await small.until(lambda: stream.head > 100)
    typed = [plan for plan in small.engine.plans[before:] if any(not row.sample for row in plan.prefill)]
    assert 1 <= len(typed) <= 2, "beside others it is one step in a hundred"
    small.runtime.cancel(stream)
    await small.rested(draft)
    small.drafting.drop(draft)
    await small.empty()


async def test_a_draft_gives_its_pages_up_and_takes_them_again(small: TypingBench) -> None:
    draft = small.open(asked("word " * 80, ()))
    await small.rested(draft)
    assert small.drafting.ready(draft) > 300
    stream = small.runtime.open(asked("x" * 500, (), max_tokens=5), lambda stream: None)
    await small.until(lambda: stream.head)
    assert small.drafting.ready(draft) < 100 and small.runtime.stats()["drafts_given_up"] == 1
    await small.answer(stream)
    await small.rested(draft)
    sent = small.drafting.send(draft, draft.ask, lambda stream: None)
    assert await small.answer(sent) == small.alone(draft.ask)
    assert draft.outcome is not None and draft.outcome.wasted >= 300
    await small.empty()


async def test_steps_of_drafts_are_as_long_as_others_can_wait(small: TypingBench) -> None:
    drafts = small.scheduler.drafts
    sizes = []
    for seconds in (0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.03, 0.001, 0.001, 0.001, 0.001, 0.001, 0.001):
        drafts.took(drafts.chunk, seconds)
        sizes.append(drafts.chunk)
    assert sizes == [256, 128, 64, 32, 16, 16, 16, 16, 32, 64, 128, 256, 512, 512]
    drafts.took(5, 0.001)
    drafts.took(5, 0.03)
    assert drafts.chunk == 512, "a few tokens say nothing of many"
    await small.empty()


async def test_typed_text_that_is_never_sent_can_be_found_by_nobody(small: TypingBench) -> None:
    cached = small.scheduler.tree.cached_pages
    draft = small.open(asked("a secret " * 30, ()))
    await small.rested(draft)
    assert small.scheduler.pages_in_use > 10 and small.scheduler.tree.cached_pages == cached
    small.drafting.drop(draft)
    small.drafting.drop(draft)
    await small.empty()
    assert small.scheduler.tree.cached_pages == cached
    assert small.scheduler.pool.used_count == cached


@pytest.mark.parametrize("when", ["before it is read", "in a chunk", "at rest"])
async def test_sent_or_dropped_at_any_moment(small: TypingBench, when: str) -> None:
    for send in (True, False):
        draft = small.open(asked("the mill " * 20, ()))
        if when != "before it is read":
            await small.read(draft)
        if when == "at rest":
            await small.rested(draft)
        elif when == "in a chunk":
            await small.until(lambda: small.loop.flight, land=False)
            small.drafting.write(draft, asked("the hill " * 20, ()))
        if send:
            stream = small.drafting.send(draft, draft.ask, lambda stream: None)
            small.drafting.write(draft, asked("too late", ()))
            assert await small.answer(stream) == small.alone(draft.ask)
        else:
            small.drafting.drop(draft)
        await small.empty()


async def test_a_picture_is_encoded_when_it_is_attached(demo: FolderPrompter) -> None:
    seeing = FolderPrompter(demo_folder(), WIDTH, WIDTH, 4096, Blueprint(demo_folder()).images(64))
    bench = TypingBench(seeing, WIDTH)
    shown = (Picture(0, png(noise(60, 60, 1))),)
    history = LONG[:2]

    def asks(text: str, pictures: tuple[Picture, ...] = shown) -> Ask:
        return replace(asked(text), messages=(*history, Message("user", text, pictures=pictures)))

    draft = bench.open(asks("", ()))
    bench.drafting.write(draft, asks(""))
    await bench.rested(draft)
    assert bench.scheduler.gallery.encoded == 1 and draft.pixels > 0
    for text in ("What ", "What is ", "What is this? A whee", "What is this? A wheel of wood? "):
        bench.drafting.write(draft, asks(text))
        await bench.rested(draft)
    assert bench.scheduler.gallery.encoded == 1, "it stays what it is, whatever is typed behind it"
    ask = asks("What is this? A wheel of wood?")
    steps = len(bench.engine.plans)
    stream = bench.drafting.send(draft, ask, lambda stream: None)
    await bench.until(lambda: stream.head)
    assert len(bench.engine.plans) - steps <= 2
    assert await bench.answer(stream) == bench.alone(ask)
    assert bench.scheduler.gallery.encoded == 1 and draft.outcome is not None and draft.outcome.used > 300
    # Beside others there is no time for an encoder; another picture is another prompt.
    other = bench.runtime.open(asked("beside it", history, max_tokens=200), lambda stream: None)
    await bench.until(lambda: other.head)
    second = bench.open(asks("Is it?", (Picture(0, png(noise(60, 60, 2))),)))
    await bench.read(second)
    await bench.until(lambda: other.head > 120)
    assert bench.scheduler.gallery.encoded == 1
    bench.runtime.cancel(other)
    await bench.rested(second)
    assert bench.scheduler.gallery.encoded == 2
    bench.drafting.drop(second)
    await bench.empty()
    assert bench.runtime._pixels == 0
    bench.runtime.close()


async def test_another_salt_shares_nothing(small: TypingBench) -> None:
    draft = small.open(asked("the mill " * 20, (), tenant=Tenant("a", "salt-a")))
    await small.rested(draft)
    ask = replace(draft.ask, tenant=Tenant("a", "salt-b"))
    stream = small.drafting.send(draft, ask, lambda stream: None)
    assert await small.answer(stream) == small.alone(ask)
    assert draft.outcome is not None and draft.outcome.used == 0 and stream.cached_tokens == 0
    await small.empty()


async def test_a_request_that_is_refused_or_cancelled_ends_its_draft(small: TypingBench) -> None:
    draft = small.open(asked("word " * 20, ()))
    await small.rested(draft)
    stream = small.drafting.send(draft, asked("word " * 900, ()), lambda stream: None)
    await small.until(lambda: stream.finish is not None)
    assert stream.error is not None and stream.error.code == "context_length_exceeded"
    assert draft.over and draft.outcome is not None and draft.outcome.used == 0
    await small.empty()
    draft = small.open(asked("word " * 20, ()))
    await small.rested(draft)
    stream = small.drafting.send(draft, draft.ask, lambda stream: None)
    small.runtime.cancel(stream)
    await small.until(lambda: draft.over)
    assert stream.finish is FinishReason.CANCELLED
    await small.empty()


async def test_a_text_longer_than_the_context_is_read_as_far_as_it_goes(small: TypingBench) -> None:
    draft = small.open(asked("word " * 400, ()))
    await small.read(draft)
    assert draft.stable == small.runtime.max_context - 1
    small.drafting.write(draft, asked("word " * 10, ()))
    await small.rested(draft)
    assert draft.stable < 100
    small.drafting.drop(draft)
    await small.empty()


async def test_drafts_of_all_clients_together_are_bounded(
    small: TypingBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drafting, "MOST", 1)
    draft = small.open(asked("word", ()))
    with pytest.raises(Refusal, match="too many prompts"):
        small.open(asked("word", ()))
    small.drafting.drop(draft)
    small.drafting.drop(small.open(asked("word", ())))
    await small.empty()


async def test_a_server_that_stops_takes_no_drafts_and_ends_those_it_has(small: TypingBench) -> None:
    draft = small.open(asked("word " * 20, ()))
    await small.rested(draft)
    small.runtime.drain()
    assert draft.over
    with pytest.raises(Refusal, match="starting or stopping"):
        small.open(asked("word", ()))
    with pytest.raises(Refusal, match="starting or stopping"):
        small.drafting.send(draft, draft.ask, lambda stream: None)
    await small.empty()
