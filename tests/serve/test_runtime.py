"""Runtime and StepLoop over the real scheduler and a fake engine whose steps land when the test says so."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Callable

import pytest
from fake_engine import FakeEngine, next_token, replay
from fake_prompter import CARD, ByteCutter, BytePrompter, letters

from headrace.runtime.interface import Ask, Message, Prompt, Runtime, TokenStream
from headrace.runtime.loop import Generation, StepLoop
from headrace.runtime.plan import NON_FINITE, StepPlan, StepResult
from headrace.runtime.refusal import Refusal
from headrace.runtime.request import FinishReason, Req
from headrace.runtime.scheduler import Scheduler


class Bench:
    """One Runtime with its parts, and the streams' dirty marks. Depth 2 is a polled engine, as on a GPU."""

    def __init__(self, *, depth: int = 1, gated: bool = True, limit: float = 1800.0, **sizes: int) -> None:
        choose = letters
        self.engine = FakeEngine(gated=gated, choose=choose, depth=depth, polled=depth > 1, **sizes)
        self.scheduler = Scheduler(
            self.engine.page_count,
            self.engine.page_size,
            self.engine.max_running,
            self.engine.chunk_tokens,
            waiting_limit=8,
        )
        self.loop = StepLoop(self.scheduler, self.engine, request_limit=limit)
        self.runtime = Runtime(CARD, BytePrompter(), self.loop, self.engine.max_context)
        self.runtime.ready = True
        self.marks: list[TokenStream] = []
        self.flushes = 0
        self.loop.on_flush = self._flushed

    def _flushed(self) -> None:
        self.flushes += 1

    def open(self, text: str = "hello", **fields: object) -> TokenStream:
        fields.setdefault("seed", 1)
        return self.runtime.open(Ask(prompt=text, **fields), self.marks.append)  # type: ignore[arg-type]

    async def until(self, condition: Callable[[], bool], turns: int = 10_000) -> None:
        """Land steps one by one until `condition` holds; nothing here is done by another thread, so the bound is in
        loop turns."""
        for _ in range(turns):
            if condition():
                return
            self.engine.land(1)
            await asyncio.sleep(0)
        raise AssertionError("the condition was not reached")

    def baseline(self) -> None:
        """Nothing is held by anybody."""
        self.scheduler.check()
        assert self.scheduler.idle and not self.scheduler.paused
        assert self.scheduler.pages_in_use == 0
        assert self.scheduler.slots.free_count == self.engine.max_running
        assert self.loop.live == 0 and not self.runtime._generations and not self.runtime._preparing


def text_of(stream: TokenStream) -> str:
    return "".join(entry.text for entry in stream.take()) + stream.tail


def expected(prompt: str, count: int, seed: int = 1) -> str:
    from headrace.runtime.request import SamplingParams

    return bytes(replay(list(prompt.encode()), count, SamplingParams(seed=seed), 256, letters)).decode()


@pytest.mark.parametrize("depth", [1, 2])
async def test_an_answer_streams_token_by_token(depth: int) -> None:
    bench = Bench(depth=depth)
    stream = bench.open("hello", max_tokens=20)
    assert stream.head == 0 and not bench.marks, "open returns before anything happens"
    seen: list[str] = []
    while stream.finish is None:
        before = stream.head
        await bench.until(lambda: stream.head > before)  # noqa: B023
        seen += [entry.text for entry in stream.take()]
    assert "".join(seen) == expected("hello", 20)
    assert stream.finish is FinishReason.LENGTH
    assert stream.usage.prompt_tokens == 5 and stream.usage.output_tokens == 20
    assert bench.flushes >= 20
    await bench.until(lambda: bench.scheduler.idle)
    bench.baseline()


@pytest.mark.parametrize("depth", [1, 2])
async def test_many_answers_equal_their_lone_runs(depth: int) -> None:
    bench = Bench(depth=depth, gated=False, page_count=64, page_size=4, slots=5)
    jobs: list[tuple[str, int, TokenStream]] = []
    rng = random.Random(7)
    for number in range(40):
        prompt = "shared beginning " * rng.randint(0, 3) + f"question {rng.randint(0, 5)}"
        count = rng.randint(1, 30)
        jobs.append((prompt, count, bench.open(prompt, max_tokens=count, seed=number)))
        while len(bench.scheduler.waiting) + len(bench.runtime._preparing) >= 8:
            await asyncio.sleep(0)
    await bench.until(lambda: all(stream.finish for _, _, stream in jobs))
    for number, (prompt, count, stream) in enumerate(jobs):
        assert text_of(stream) == expected(prompt, count, number)
    assert bench.scheduler.counters.cached_tokens > 0
    bench.baseline()


@pytest.mark.parametrize("depth", [1, 2])
async def test_every_gap_between_two_tokens_of_a_stream_is_counted_once(depth: int) -> None:
    bench = Bench(depth=depth)
    seconds = iter(range(1, 1 << 20))  # a clock that moves whenever somebody looks
    bench.loop.clock = lambda: float(next(seconds))
    gaps: list[tuple[float, int]] = []
    bench.loop.on_gap = lambda gap, streams: gaps.append((gap, streams))
    streams = [bench.open("x" * size, max_tokens=12) for size in (3, 40, 9)]
    await bench.until(lambda: streams[0].head > 4)
    streams.append(bench.open("later", max_tokens=12))
    held = bench.runtime._generations[streams[1]].req
    bench.scheduler.pause(held)
    await bench.until(lambda: streams[0].finish is not None)
    bench.scheduler.resume(held)
    await bench.until(lambda: all(stream.finish for stream in streams))
    assert sum(count for _, count in gaps) == sum(stream.head - 1 for stream in streams)
    waited = [stream.times.last_token - stream.times.first_token for stream in streams]  # type: ignore[operator]
    assert sum(gap * count for gap, count in gaps) == sum(waited)
    assert all(gap > 0 and count > 0 for gap, count in gaps) and max(count for _, count in gaps) == 3


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("turns", range(0, 12))
async def test_cancel_at_every_point_leaves_nothing_behind(depth: int, turns: int) -> None:
    bench = Bench(depth=depth, page_count=16, page_size=4, slots=2)
    streams = [bench.open("x" * size, max_tokens=20) for size in (3, 40, 9)]
    for _ in range(turns):
        bench.engine.land(1)
        await asyncio.sleep(0)
    launched = len(bench.engine.plans)
    for stream in streams:
        bench.runtime.cancel(stream)
        assert stream.finish is FinishReason.CANCELLED
        heads = stream.head
        bench.runtime.cancel(stream)
        assert stream.head == heads
    await bench.until(lambda: bench.scheduler.idle and not bench.engine.held and bench.loop.live == 0)
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(bench.engine.plans) == launched, "no step was planned for a cancelled request"
    bench.baseline()


async def test_cancelled_request_is_in_no_later_plan_and_others_go_on() -> None:
    bench = Bench(depth=2)
    gone, stays = bench.open("aaaa", max_tokens=50), bench.open("bbbb", max_tokens=30)
    await bench.until(lambda: gone.head >= 5)
    bench.runtime.cancel(gone)
    planned = len(bench.engine.plans)
    held = gone.head
    await bench.until(lambda: stays.finish is not None)
    ids = {row.req_id for plan in bench.engine.plans[planned:] for row in plan.rows}
    assert len(ids) == 1 and gone.head == held
    assert text_of(stays) == expected("bbbb", 30)


async def test_stop_string_cuts_the_text_and_frees_the_request() -> None:
    bench = Bench(gated=False)
    whole = expected("tell me", 60)
    stop = whole[25:28]
    stream = bench.open("tell me", max_tokens=60, stop=(stop,))
    await bench.until(lambda: stream.finish is not None)
    assert stream.finish is FinishReason.STOP and stream.matched_stop == stop
    assert text_of(stream) == whole[: whole.index(stop)]
    await bench.until(lambda: bench.scheduler.idle)
    bench.baseline()


async def test_stop_id_ends_the_answer_without_its_text() -> None:
    bench = Bench(gated=False)
    whole = expected("tell me", 60)
    stream = bench.open("tell me", max_tokens=60, stop_ids=(ord(whole[10]),))
    await bench.until(lambda: stream.finish is not None)
    first = whole.index(whole[10])
    assert stream.finish is FinishReason.STOP and stream.matched_stop == ord(whole[10])
    assert stream.usage.output_tokens == first + 1
    assert text_of(stream) == whole[:first]


async def test_a_reader_that_stalls_leaves_the_batch_and_loses_nothing() -> None:
    bench = Bench(gated=False, slots=2)
    slow, fast = bench.open("slow", max_tokens=1500), bench.open("fast", max_tokens=1500)
    slow.window = 32
    got: list[str] = []

    def read_fast() -> bool:
        got.extend(entry.text for entry in fast.take())
        return fast.finish is not None

    await bench.until(read_fast, 100_000)
    assert 32 <= slow.head <= 34, "the window and what was in flight, no more"
    assert len(bench.scheduler.paused) == 1 and slow.finish is None
    assert "".join(got) + fast.tail == expected("fast", 1500)
    text: list[str] = []

    def read_slow() -> bool:
        text.extend(entry.text for entry in slow.take(3))
        return slow.ended

    prefilled = bench.scheduler.counters.prefill_tokens_computed
    await bench.until(read_slow, 100_000)
    assert "".join(text) + slow.tail == expected("slow", 1500)
    assert bench.scheduler.counters.prefill_tokens_computed == prefilled, "waking costs no prefill"
    bench.baseline()


async def test_refusals_reach_their_stream_only() -> None:
    bench = Bench(gated=False, page_count=8, page_size=4)
    fine = bench.open("ok", max_tokens=8)
    long = bench.open("y" * 40, max_tokens=2)
    much = bench.open("z", max_tokens=1000)
    empty = bench.open("", max_tokens=2)
    wild = bench.open("a", logit_bias=((256, 1.0),))
    await bench.until(lambda: all(s.finish for s in (fine, long, much, empty, wild)))
    assert fine.finish is FinishReason.LENGTH
    codes = [(s.error.code, s.error.param) for s in (long, much, empty, wild) if s.error]
    assert codes == [
        ("context_length_exceeded", "prompt"),
        ("context_length_exceeded", "max_tokens"),
        ("invalid_value", "prompt"),
        ("invalid_value", "logit_bias"),
    ]
    bench.baseline()


async def test_an_unexpected_error_in_preparation_is_that_request_alone() -> None:
    bench = Bench(gated=False)

    class Broken(BytePrompter):
        def prepare(self, ask: Ask) -> Prompt:
            if ask.prompt == "boom" or (ask.messages and ask.messages[0].content.startswith("boom")):
                raise ZeroDivisionError("from a template")
            return super().prepare(ask)

    bench.runtime.prompter = Broken()
    bad, good = bench.open("boom", max_tokens=3), bench.open("good", max_tokens=3)
    big = bench.runtime.open(
        Ask(messages=(Message("user", "boom" * 1000),), max_tokens=3), bench.marks.append
    )
    async with asyncio.timeout(120):  # its prompt is long: another thread prepares it
        while big.finish is None:
            await asyncio.sleep(0)
    await bench.until(lambda: bad.finish is not None and good.finish is not None)
    assert bad.error is not None and bad.error.code == "server_error"
    assert big.error is not None and "Zero" not in big.error.message
    assert good.finish is FinishReason.LENGTH
    bench.baseline()


async def test_waiting_limit_refuses_at_once() -> None:
    bench = Bench(slots=1)
    streams = [bench.open("q", max_tokens=4) for _ in range(8)]
    with pytest.raises(Refusal) as refused:
        bench.open("one too many")
    assert refused.value.code == "server_is_overloaded" and refused.value.retry_after
    await bench.until(lambda: all(s.finish for s in streams))


async def test_not_ready_and_draining_take_no_work() -> None:
    bench = Bench(gated=False)
    running = bench.open("q", max_tokens=4)
    bench.runtime.drain()
    with pytest.raises(Refusal):
        bench.open("late")
    await bench.until(lambda: running.finish is not None)
    await bench.runtime.emptied()
    bench.baseline()


async def test_a_non_finite_row_fails_alone() -> None:
    bench = Bench()
    bad, good = bench.open("bad", max_tokens=30), bench.open("good", max_tokens=30)
    await bench.until(lambda: bad.head >= 3)
    run = bench.engine.memory.run

    def poisoned(plan: StepPlan) -> StepResult:
        result = run(plan)
        rows = [row for row in plan.rows if row.sample]
        return StepResult(
            tuple(NON_FINITE if row.req_id == 1 else t for row, t in zip(rows, result.tokens, strict=True))
        )

    bench.engine.memory.run = poisoned  # type: ignore[method-assign]
    await bench.until(lambda: good.finish is not None)
    assert bad.finish is FinishReason.ERROR and bad.error is not None
    assert text_of(good) == expected("good", 30)
    bench.baseline()


async def test_an_engine_fault_tells_every_stream_and_stops() -> None:
    bench = Bench(gated=False)
    faults: list[BaseException] = []
    bench.loop.on_fault = faults.append
    bench.engine.fault = RuntimeError("device lost")
    streams = [bench.open("a", max_tokens=4), bench.open("b", max_tokens=4)]
    await bench.until(lambda: all(s.finish for s in streams))
    assert [s.error.code for s in streams if s.error] == ["server_error"] * 2
    assert len(faults) == 1 and not bench.runtime.alive
    late = bench.open("c", max_tokens=4)
    await bench.until(lambda: late.finish is not None)
    assert late.error is not None and late.error.code == "server_error"


async def test_wall_clock_limit_ends_a_request_with_timeout() -> None:
    bench = Bench(limit=0.0)
    stream = bench.open("a", max_tokens=1000)
    await bench.until(lambda: stream.finish is not None)
    assert stream.error is not None and stream.error.code == "timeout"
    await bench.until(lambda: bench.scheduler.idle and not bench.engine.held)
    bench.baseline()


async def test_equal_asks_give_equal_tokens_whatever_runs_beside_them() -> None:
    bench = Bench(gated=False, slots=4)
    alone = bench.open("same", max_tokens=12, seed=5)
    await bench.until(lambda: alone.finish is not None)
    crowd = [bench.open(f"other {i}", max_tokens=30, seed=i) for i in range(3)]
    again = bench.open("same", max_tokens=12, seed=5)
    await bench.until(lambda: all(s.finish for s in (*crowd, again)))
    assert text_of(alone) == text_of(again)


def test_the_fake_model_reads_every_token() -> None:
    assert len({next_token([*[1, 2, 3][:n], n], 1, 1 << 32) for n in range(3)}) == 3


async def test_a_broken_assertion_of_ours_ends_every_stream_instead_of_hanging_it() -> None:
    bench = Bench(gated=False)
    faults: list[BaseException] = []
    bench.loop.on_fault = faults.append

    def broken(*_: object) -> None:
        raise AssertionError("the books are wrong")

    bench.scheduler.retire = broken  # type: ignore[assignment,method-assign]
    stream = bench.open("a", max_tokens=4)
    await bench.until(lambda: stream.finish is not None)
    assert stream.error is not None and "books" not in stream.error.message
    assert [str(fault) for fault in faults] == ["the books are wrong"]


async def test_text_waiting_for_preparation_is_bounded_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(gated=False)
    monkeypatch.setattr("headrace.runtime.text_work.LIMIT", 100)
    first = bench.open("x" * 80, max_tokens=1)
    with pytest.raises(Refusal) as refused:
        bench.open("y" * 30, max_tokens=1)
    assert refused.value.code == "server_is_overloaded"
    await bench.until(lambda: first.finish is not None)
    second = bench.open("z" * 99, max_tokens=1)
    await bench.until(lambda: second.finish is not None)
    assert second.finish is FinishReason.LENGTH, "what was prepared makes room"
    bench.baseline()


async def test_a_request_whose_text_breaks_fails_alone() -> None:
    """An exception from one request's cutter is that request's error, while it streams and at its end."""
    bench = Bench(gated=False)

    class Brittle(BytePrompter):
        def cutter(self, ask: Ask) -> ByteCutter:
            cutter = ByteCutter(ask.stop)

            def broken(*_: object) -> str:
                raise IndexError("from a text table")

            if ask.prompt == "push":
                cutter.push = broken  # type: ignore[method-assign]
            if ask.prompt == "finish":
                cutter.finish = broken  # type: ignore[method-assign]
            return cutter

    bench.runtime.prompter = Brittle()
    push, finish, good = (bench.open(name, max_tokens=6) for name in ("push", "finish", "good"))
    await bench.until(lambda: all(stream.finish for stream in (push, finish, good)))
    for stream in (push, finish):
        assert stream.finish is FinishReason.ERROR
        assert stream.error is not None and "table" not in stream.error.message
    assert text_of(good) == expected("good", 6)
    assert bench.runtime.alive
    await bench.until(lambda: bench.scheduler.idle)
    bench.baseline()


async def test_a_finished_request_leaves_nothing_for_the_collector() -> None:
    """Reference counts alone free a request: full collections are rare while others stream."""
    bench = Bench(gated=False)

    async def live(end: str) -> None:
        stream = bench.open("x" * 20, max_tokens=9_999_999 if end == "refused" else 40)
        if end == "stalled":
            stream.window = 8
            await bench.until(lambda: stream.full)
        if end == "cancelled":
            await bench.until(lambda: stream.head > 2)
            bench.runtime.cancel(stream)
        await bench.until(lambda: stream.take() is None or stream.finish is not None)
        bench.marks.clear()

    def left() -> list[object]:
        return [each for each in gc.get_objects() if isinstance(each, (Req, Generation, TokenStream))]

    gc.collect()
    before = len(left())  # of other tests, if they failed
    gc.disable()
    try:
        for end in ("whole", "cancelled", "refused", "stalled"):
            await live(end)
            await bench.until(lambda: bench.scheduler.idle)
            for _ in range(5):
                await asyncio.sleep(0)
            assert len(left()) == before, end
    finally:
        gc.enable()
