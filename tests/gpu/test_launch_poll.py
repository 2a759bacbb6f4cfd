"""`launch` and `poll`: order, what is in flight, the end of the ring, steps with more words than a block holds."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_rig import GREEDY, fill_pages, grant, plan_of, step, write_small

import headrace.runtime.device_engine as engines
from headrace.runtime.device_engine import BLOCKS, DEPTH, DeviceEngine
from headrace.runtime.plan import PageCopy, PagePatch, PlanRow, SlotGrant, StepResult
from headrace.runtime.request import SamplingParams

LOADED = SamplingParams(
    temperature=0.7,
    repetition_penalty=1.1,
    seed=3,
    stop_ids=frozenset(range(40, 60)),
    logit_bias=tuple((token, 0.5) for token in range(20, 50)),
    min_tokens=2,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("small"))


class HeldMark:
    """A mark of the queue that is done when its test says so."""

    def __init__(self, mark: Any, held: list[HeldMark]) -> None:
        self.mark = mark
        self.open = False
        held.append(self)

    def done(self) -> bool:
        return self.open and self.mark.done()

    def wait(self) -> None:
        self.mark.wait()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Callable[[DeviceEngine], list[HeldMark]]:
    """held(engine): every mark from now on; none is done before its `open` is set."""

    def hold(engine: DeviceEngine) -> list[HeldMark]:
        marks: list[HeldMark] = []
        plain = engine.queue.mark
        monkeypatch.setattr(engine.queue, "mark", lambda: HeldMark(plain(), marks))
        return marks

    return hold


def rowless(engine: DeviceEngine, slot: int) -> Future[StepResult]:
    """A step that only fills tables."""
    return engine.launch(plan_of(grants=(grant(slot, slot + 1),)))


def test_futures_are_resolved_in_order_and_by_poll_alone(folder: Path, device_engine: Any, held: Any) -> None:
    engine = device_engine(folder, max_running=4)
    marks = held(engine)
    first = engine.launch(plan_of(grants=(grant(0, 3),), prefill=(PlanRow(0, 0, 0, 3, (5, 6, 7), True),)))
    second = engine.launch(plan_of(decode=(PlanRow(0, 0, 3, 1, None, True),)))
    assert not engine.poll() and not first.done() and not second.done()
    engine.queue.wait()
    marks[1].open = True  # the later one alone: nothing may overtake
    assert not engine.poll() and not second.done()
    marks[0].open = True
    assert not first.done(), "only poll resolves"
    assert engine.poll() and first.done() and second.done()
    assert not engine.poll(), "nothing is left"
    tokens = (*first.result().tokens, *second.result().tokens)
    assert len(tokens) == 2 and all(0 <= token < 97 for token in tokens)
    del marks[:]
    alone = engine.launch(plan_of(grants=(grant(2, 9),), prefill=(PlanRow(2, 2, 0, 3, (5, 6, 7), True),)))
    engine.queue.wait()
    marks[0].open = True
    assert engine.poll() and alone.result().tokens == tokens[:1]


def test_more_steps_than_blocks_is_our_mistake(folder: Path, device_engine: Any, held: Any) -> None:
    assert BLOCKS > DEPTH
    engine = device_engine(folder, max_running=4)
    marks = held(engine)
    futures = [rowless(engine, slot % 4) for slot in range(BLOCKS)]
    with pytest.raises(AssertionError, match="more steps in flight than blocks"):
        rowless(engine, 0)
    for mark in marks:
        mark.open = True
    engine.queue.wait()
    assert engine.poll() and all(future.result().tokens == () for future in futures)


def test_close_resolves_everything(folder: Path, device_engine: Any) -> None:
    engine = device_engine(folder, max_running=4)
    futures = [
        engine.launch(plan_of(grants=(grant(0, 3),), prefill=(PlanRow(0, 0, 0, 2, (5, 6), True),))),
        engine.launch(plan_of(decode=(PlanRow(0, 0, 2, 1, None, True),))),
        rowless(engine, 1),
    ]
    engine.close()
    assert [len(future.result().tokens) for future in futures] == [1, 1, 0]
    engine.close()


def test_a_broken_device_breaks_the_futures(folder: Path, device_engine: Any, held: Any) -> None:
    """What the queue raises is the result of the oldest step; the engine is not asked again after that."""
    engine = device_engine(folder, max_running=4)
    marks = held(engine)
    first, second = rowless(engine, 0), rowless(engine, 1)

    def broken() -> bool:
        raise RuntimeError("an illegal memory access was encountered")

    marks[0].done = broken  # type: ignore[method-assign]
    assert engine.poll()
    assert isinstance(first.exception(), RuntimeError) and not second.done()
    marks[1].open = True
    engine.queue.wait()
    engine.poll()


def tables(engine: DeviceEngine) -> list[torch.Tensor]:
    engine.queue.wait()
    return [part.cpu().clone() for part in (engine.slab.arena, engine.sampler.history, engine.slab.pages)]


def busy_plan(engine: DeviceEngine) -> dict[str, Any]:
    """Grants with full settings and histories for every slot, patches, copies, and a row that reads all of it."""
    pages = engine.page_count // 4
    grants = tuple(
        SlotGrant(slot, slot, LOADED, 30, tuple(range(pages * slot, pages * slot + 4)), tuple(range(40)))
        for slot in range(4)
    )
    patches = tuple(PagePatch(slot, 2, pages * slot + 5) for slot in range(4))
    copies = tuple(PageCopy(pages * slot, pages * slot + 6) for slot in range(4))
    rows = tuple(PlanRow(slot, slot, 0, 3, (slot, 8, 9), True) for slot in range(3))
    return {"grants": grants, "patches": patches, "copies": copies, "prefill": rows}


def test_writes_beyond_those_that_travel_with_a_step(
    folder: Path, device_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four grants change several hundred words: the first travel with the step, the others go ahead of it. The
    device's tables are the host's afterwards, and the tokens do not depend on the way."""
    engine = device_engine(folder, max_running=4)
    sent = step(engine, **busy_plan(engine))
    assert torch.equal(engine.slab.arena.cpu(), torch.from_numpy(engine.slab._shadow))
    assert np.count_nonzero(engine.slab._shadow) > engines.INLINE_WRITES
    expected = tables(engine)
    other = device_engine(folder, max_running=4)
    monkeypatch.setattr(engines, "INLINE_WRITES", 3)
    assert step(other, **busy_plan(other)) == sent
    assert all(torch.equal(own, theirs) for own, theirs in zip(tables(other), expected, strict=True))


def test_a_spill_that_is_too_small_goes_out_in_parts(
    folder: Path, device_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where histories, copies and writes of one step need more words than travel beside it, what is there goes out
    first; nothing of it is overwritten before it was read, wherever the cut falls."""
    plain = device_engine(folder, max_running=4, kv_memory_mb=1)
    content = torch.rand(plain.slab.pages.shape, generator=torch.Generator().manual_seed(1))
    parts = busy_plan(plain)
    del parts["prefill"]

    def run(engine: DeviceEngine) -> list[torch.Tensor]:
        fill_pages(engine, content)
        step(engine, **parts)
        return tables(engine)

    expected = run(plain)
    flushed = []
    flush = engines._Spill._flush
    monkeypatch.setattr(engines._Spill, "_flush", lambda spill: (flushed.append(spill), flush(spill))[1])
    for room in (84, 120, 252, 408, 600, 708):
        monkeypatch.setattr(engines, "SPILL_WORDS", room)
        flushed.clear()
        found = run(device_engine(folder, max_running=4, kv_memory_mb=1))
        assert flushed, f"{room} words were enough"
        assert all(torch.equal(own, theirs) for own, theirs in zip(found, expected, strict=True)), room


def test_the_same_grant_again_sends_nothing(folder: Path, device_engine: Any) -> None:
    """Only words that change travel: a slot whose next owner has the same settings costs its pages at most."""
    engine = device_engine(folder, max_running=4)
    assert engine.slab.write_settings(2, engine.sampler.settings_row(grant(2, params=GREEDY)))[0]
    assert engine.slab.write_settings(2, engine.sampler.settings_row(grant(2, params=GREEDY))) == ([], [])
    assert engine.slab.write_pages(2, 0, (4, 5))[1] == [4, 5]
    assert engine.slab.write_pages(2, 0, (4, 6)) == ([2 * engine.slab.pages_per_slot + 1], [6])
