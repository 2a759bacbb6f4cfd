"""The sweep over the page-reading fake engine: every row reads what a prefill wrote, and cells follow the plan."""

from __future__ import annotations

from concurrent.futures import Future

import pytest
from fake_engine import UNWRITTEN, FakeEngine

from headrace.bench.step_model import BF16, H200, SHAPES, Work, work_floor_ms
from headrace.bench.sweep import Sweep, measure_cell, measure_sweep, waiter
from headrace.runtime.plan import StepPlan, StepResult

RATES = (SHAPES["qwen3-0.6b"], H200, BF16)


class Watched(FakeEngine):
    """Checks that a step reads no cell that was never written."""

    embedding_rows = 256

    def __init__(self, page_count: int = 64) -> None:
        super().__init__(page_count=page_count)
        self.max_context = 64

    def launch(self, plan: StepPlan) -> Future[StepResult]:
        future = super().launch(plan)
        size = self.page_size
        for row in plan.rows:
            table = self.memory.tables[row.slot]
            for place in range(row.start + row.count):
                assert self.memory.pages[table[place // size]][place % size] != UNWRITTEN, (row, place)
        return future


class Asked(Watched):
    """Lands a step only when asked, and only the second time."""

    def __init__(self) -> None:
        super().__init__()
        self.flight: list[tuple[Future[StepResult], StepResult]] = []
        self.asked = 0
        self.left = 3
        self.poll = self.ask
        self.idle_work = self.tidy

    def launch(self, plan: StepPlan) -> Future[StepResult]:
        future: Future[StepResult] = Future()
        self.plans.append(plan)
        self.flight.append((future, self.memory.run(plan)))
        return future

    def ask(self) -> bool:
        self.asked += 1
        if self.asked % 2 or not self.flight:
            return False
        future, result = self.flight.pop(0)
        future.set_result(result)
        return True

    def tidy(self) -> bool:
        assert not self.plans, "before anything is measured"
        self.left -= 1
        return self.left > 0


def test_cells_name_their_rows_and_floors() -> None:
    engine = Watched()
    heard: list[dict[str, object]] = []
    cells, prompts = measure_sweep(engine, [2, 1], [20, 8], 8, 1, RATES, heard.append)
    assert heard == cells
    assert [(cell["rows"], cell["context"]) for cell in cells] == [(1, 12.5), (2, 12.5), (1, 24.5), (2, 24.5)]
    for cell in cells:
        floor = work_floor_ms(RATES[0], Work(cell["rows"], cell["context"]), H200, BF16)
        assert cell["floor_ms"] == pytest.approx(floor, abs=1e-4)
        assert cell["step_ms_best"] <= cell["step_ms"] <= cell["step_ms_worst"]
        assert cell["launch_us_p50"] <= cell["launch_us_p99"]
        assert cell["gap_us_p50"] <= cell["gap_us_p99"]
    # Two slots, each filled to 8 and then on to 20, in chunks: nothing is computed twice.
    assert sum(cell["chunk"] * cell["steps"] for cell in prompts) == 2 * 20
    assert sum(plan.prefill_tokens for plan in engine.plans) == 2 * 20


def test_each_row_decodes_from_its_context() -> None:
    engine = Watched()
    sweep = Sweep(engine)
    measure_cell(sweep, 3, 10, 8, 2, RATES)
    decode = [plan for plan in engine.plans if plan.decode]
    assert len(decode) == (2 + 1) * 2 * 8, "rounds and one discarded, at depth two and one"
    for number, plan in enumerate(decode):
        assert [row.slot for row in plan.decode] == [0, 1, 2]
        assert {row.start for row in plan.decode} == {10 + number % 8}
    numbers = [plan.number for plan in engine.plans]
    assert numbers == sorted(set(numbers))


def test_no_page_belongs_to_two_rows() -> None:
    engine = Watched()
    sweep = Sweep(engine)
    for context in (5, 30, 50):
        sweep.fill(4, context, 8)
        tables = [page for slot in range(4) for page in engine.memory.tables[slot]]
        assert len(tables) == len(set(tables))
        assert all(len(engine.memory.tables[slot]) * engine.page_size >= context + 8 for slot in range(4))


@pytest.mark.parametrize(
    ("rows", "context", "why"), [(99, 8, "slots"), (1, 60, "context of 64"), (4, 40, "the slab has")]
)
def test_what_does_not_fit_is_left_out_by_name(rows: int, context: int, why: str) -> None:
    engine = Watched(page_count=11)
    cell = measure_cell(Sweep(engine), rows, context, 8, 1, RATES)
    assert why in cell["left_out"]
    assert not engine.plans


def test_slots_filled_for_other_cells_count() -> None:
    engine = Watched(page_count=12)
    sweep = Sweep(engine)
    sweep.fill(2, 8, 8)
    held = sum(len(pages) for pages in sweep.pages)
    free = 12 - held
    assert sweep.obstacle(1, free * engine.page_size + 8, 8) is not None


def test_an_engine_that_wants_to_be_asked_is_asked() -> None:
    engine = Asked()
    cells, _ = measure_sweep(engine, [2], [8], 8, 1, RATES, lambda cell: None)
    assert "step_ms" in cells[0] and engine.left == 0 and not engine.flight
    future: Future[StepResult] = Future()
    engine.flight.append((future, StepResult((5,))))
    assert waiter(engine)(future).tokens == (5,)
