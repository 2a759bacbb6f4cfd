"""Padded steps: a graph computes what the eager step does, bit for bit, and nobody notices the padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from device_rig import Populated, State, Stepper, fill_pages, grant, live, plan_of, poison, step, write_small
from interpreted import ON_GPU

from headrace.graphs.packed import StepKey
from headrace.runtime.device_engine import DeviceEngine
from headrace.runtime.plan import PageCopy, PagePatch, PlanRow, StepPlan

# Without a GPU, fewer slots and prompt sizes, and of each key the emptiest step only.
SIZES = {"max_running": 24, "chunk_tokens": 256} if ON_GPU else {"max_running": 3, "chunk_tokens": 32}
DTYPES = ("float32", "bfloat16") if ON_GPU else ("float32",)
CLOSE = {"float32": 1e-5, "bfloat16": 2e-2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("small"))


def populated(engine: DeviceEngine) -> Populated:
    """Every slot with a prompt: within one page, over its edge, over several."""
    lengths = [1 + (7 * slot) % 37 for slot in range(engine.max_running)]
    return Populated(engine, lengths, spare=engine.chunk_tokens)


def counts_at(bucket: int, below: int) -> list[int]:
    """The smallest count that takes this bucket, the largest, and one less."""
    return sorted({below + 1, max(below + 1, bucket - 1), bucket})


def plans(host: Populated, key: StepKey) -> Iterator[StepPlan]:
    """Plans that the engine pads to `key`, from as empty as may be to full."""
    keys = host.engine.keys
    tokens, decodes = [0], [0]
    if key.chunk:
        tokens = counts_at(key.chunk, max((count for count in keys.chunks if count < key.chunk), default=0))
    if key.decode:
        buckets = keys.beside if key.chunk else keys.decode
        below = max((count for count in buckets if count < key.decode), default=0)
        decodes = counts_at(key.decode, below)
    slots = list(range(len(host.lengths)))
    for place in range(max(len(tokens), len(decodes)) if ON_GPU else 1):
        count, chunk = decodes[place % len(decodes)], tokens[place % len(tokens)]
        if chunk:
            count = min(count, len(slots) - 1)  # a slot has one row in a step
        host.random.shuffle(slots)
        rows = slots[count:][: min(key.rows, chunk, 1 + place)]
        plan = plan_of(decode=host.decode(slots[:count]), prefill=host.extend(rows, chunk) if chunk else ())
        assert keys.key_for(len(plan.decode), plan.prefill_tokens, len(plan.prefill)) == key
        yield plan


def distance(found: torch.Tensor, exact: torch.Tensor) -> float:
    found, exact = found.double(), exact.double()
    return ((found - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_key(folder: Path, device_engine: Callable[..., DeviceEngine], dtype: str) -> None:
    """For every key and the counts at its edges, the graph leaves the logits, tokens, KV, tables and histories of
    the eager step, also when everything that belongs to nobody is garbage; an unpadded step is as close as
    rounding allows."""
    engine = device_engine(folder, dtype=dtype, kv_memory_mb=16, max_context=512, **SIZES)
    host, stepper = populated(engine), Stepper(engine)
    captured = list(engine.keys.captured())
    if ON_GPU:
        while engine._uncaptured:
            engine.idle_work()
    checked = 0
    for key in captured:
        for plan in plans(host, key):
            before = State(engine)
            assert stepper.send(plan) == key
            logits, tokens = stepper.run(key, replay=False)
            rows = live(plan, key)
            assert not logits[rows].isnan().any() and (tokens[rows] >= 0).all()
            after = State(engine)
            assert written_cells(before, after) == cells_of(host, plan)
            before.put_back()
            poison(engine, key)
            again = stepper.run(key, replay=ON_GPU)
            assert torch.equal(logits[rows], again[0][rows]), f"{key} computes something else"
            assert torch.equal(tokens[rows], again[1][rows])
            assert State(engine).equals(after), f"{key} leaves something else behind"
            before.put_back()
            exact = StepKey(len(plan.decode), plan.prefill_tokens, len(plan.prefill))
            stepper.send(plan, exact)
            alone, _ = stepper.run(exact, replay=False)
            assert distance(logits[rows], alone[live(plan, exact)]) < CLOSE[dtype], (key, exact)
            before.put_back()
            checked += 1
    assert checked >= len(captured)


def written_cells(before: State, after: State) -> set[tuple[int, int]]:
    """(page, place in it) of every token whose KV changed."""
    (_, old), (_, new) = before.held[0], after.held[0]
    changed = ~((old == new) | (old.isnan() & new.isnan()))
    return {(page, place) for page, place in changed.any(5).any(4).any(1).any(0).nonzero().tolist()}


def cells_of(host: Populated, plan: StepPlan) -> set[tuple[int, int]]:
    size = host.engine.page_size
    return {
        (host.pages[row.slot][position // size], position % size)
        for row in plan.rows
        for position in range(row.start, row.start + row.count)
    }


def test_a_step_of_more_prompts_than_any_graph_takes(
    folder: Path, device_engine: Callable[..., DeviceEngine]
) -> None:
    """Such a step runs eagerly, and each of its prompts answers as it does alone."""
    engine = device_engine(folder, max_running=12, chunk_tokens=16, kv_memory_mb=2)
    prompts = [tuple(range(5 + slot, 6 + slot)) for slot in range(11)]
    grants = tuple(grant(slot, slot) for slot in range(11))
    rows = tuple(PlanRow(slot, slot, 0, 1, ids, True) for slot, ids in enumerate(prompts))
    key = engine.keys.key_for(0, 11, 11)
    assert key.rows == 16 and key not in engine.keys.captured()
    together = step(engine, grants=grants, prefill=rows)
    few = rows if ON_GPU else rows[::5]
    assert tuple(step(engine, prefill=(row,))[0] for row in few) == tuple(together[row.slot] for row in few)


def test_parts_of_a_plan_run_in_order(folder: Path, device_engine: Callable[..., DeviceEngine]) -> None:
    """One plan grants a slot, patches its table, copies a page into the patched one and feeds from there."""
    engine = device_engine(folder, page_size=16, max_running=4)
    fill_pages(engine, float("nan"))
    prompt = tuple(range(20, 58))
    whole = step(
        engine, grants=(grant(0, 1, 2, 3, prompt_len=38),), prefill=(PlanRow(0, 0, 0, 38, prompt, True),)
    )
    copied = step(
        engine,
        grants=(grant(3, 1, 2, 7, prompt_len=38),),
        patches=(PagePatch(3, 2, 9),),
        copies=(PageCopy(3, 9),),
        prefill=(PlanRow(3, 3, 37, 1, prompt[37:], True),),
    )
    assert copied == whole
    both = step(engine, decode=(PlanRow(0, 0, 38, 1, None, True), PlanRow(3, 3, 38, 1, None, True)))
    assert both[0] == both[1]
    # Their pages are their own from here on: other tokens in one change nothing in the other.
    before = State(engine)
    step(engine, prefill=(PlanRow(3, 3, 38, 2, (1, 2), True),))
    assert written_cells(before, State(engine)) == {(9, 6), (9, 7)}
