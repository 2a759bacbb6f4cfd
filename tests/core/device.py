"""The device of the simulation: pages whose cells depend on everything before them, and what a lone run answers.

A cell is a hash of its token and of the cell before it, as real KV depends on all earlier KV. A token is a hash
of all cells that its row reads through the page table. So a page that is missing, stale, foreign, shifted, or
that was computed on a wrong prefix changes the text, even if the right page is mapped later.

Hashes are of tuples of integers: they do not depend on PYTHONHASHSEED.
"""

from __future__ import annotations

from collections.abc import Sequence

from headrace.runtime.plan import NON_FINITE, PlanRow, StepPlan, StepResult
from headrace.runtime.request import SamplingParams

UNWRITTEN = -7
FREED = -11
GARBAGE = 1 << 40  # the "token" that a row with non-finite logits leaves on the device
SPOILED = -(1 << 50)  # SPOILED - req_id: a cell that holds a NaN which this request brought in
_CELL = (1 << 62) - 1  # sound cells are not negative


def cell_after(before: int, token: int) -> int:
    return hash((before, token)) & _CELL


def choose(cells: Sequence[int], seed: int, width: int) -> int:
    """The next token after these cells; its index is their number."""
    return hash((seed, len(cells), tuple(cells))) % width


def cells_of(tokens: Sequence[int]) -> list[int]:
    cells: list[int] = []
    before = 0
    for token in tokens:
        before = cell_after(before, token)
        cells.append(before)
    return cells


def alone(prompt: Sequence[int], count: int, params: SamplingParams, width: int, said: int = 0) -> list[int]:
    """The oracle: what this request answers when nobody else is there; at most `count` tokens. The last `said`
    tokens of `prompt` were answered before."""
    cells = cells_of(prompt)
    answer: list[int] = []
    while len(answer) < count:
        token = choose(cells, params.seed, width)
        answer.append(token)
        if token in params.stop_ids and said + len(answer) > params.min_tokens:
            break
        cells.append(cell_after(cells[-1], token))
    return answer


class Device:
    """Runs plans in order. Knows pages, page tables, seeds and last tokens by slot; knows nothing of requests.

    It refuses what no kernel could do: a cell read before it was written, two rows that meet on one page,
    a table entry behind the end of its table."""

    def __init__(self, page_count: int, page_size: int, slots: int, width: int) -> None:
        self.page_size = page_size
        self.width = width
        self.pages = [[UNWRITTEN] * page_size for _ in range(page_count)]
        self.tables: list[list[int]] = [[] for _ in range(slots)]
        self.seeds = [0] * slots
        self.last = [UNWRITTEN] * slots

    def run(self, plan: StepPlan, spoil: frozenset[int]) -> tuple[StepResult, dict[int, int]]:
        """The result, and which request each failing row (by req_id) caught its NaN from.

        spoil: indices into `plan.rows` whose arithmetic goes wrong in this step."""
        for grant in plan.grants:
            self.tables[grant.slot] = list(grant.pages)
            self.seeds[grant.slot] = grant.params.seed
            self.last[grant.slot] = UNWRITTEN
        for patch in plan.patches:
            table = self.tables[patch.slot]
            assert patch.index == len(table), "a page table grows at its end"
            table.append(patch.page)
        targets = {copy.target for copy in plan.copies}
        assert len(targets) == len(plan.copies), "two copies have one target"
        for copy in plan.copies:
            assert copy.source not in targets, "a copy reads what another one writes in the same step"
            self.pages[copy.target] = list(self.pages[copy.source])
        # All rows read before any row writes: rows of one step run at once, so none may rely on another.
        rows = plan.rows
        past = [self._read(row) for row in rows]
        written: set[int] = set()
        for index, row in enumerate(rows):
            past[index] += self._write(row, past[index], index in spoil, written)
        sampled: list[int] = []
        causes: dict[int, int] = {}
        for row, cells in zip(rows, past, strict=True):
            if row.sample:
                sick = min(cells)
                if sick <= SPOILED:
                    causes[row.req_id] = SPOILED - sick
                    self.last[row.slot] = GARBAGE
                    sampled.append(NON_FINITE)
                else:
                    self.last[row.slot] = choose(cells, self.seeds[row.slot], self.width)
                    sampled.append(self.last[row.slot])
        return StepResult(tuple(sampled)), causes

    def _read(self, row: PlanRow) -> list[int]:
        cells: list[int] = []
        for page in self.tables[row.slot][: -(-row.start // self.page_size)]:
            cells += self.pages[page]
        del cells[row.start :]
        assert len(cells) == row.start, f"request {row.req_id} reads beyond its page table"
        assert UNWRITTEN not in cells and FREED not in cells, (
            f"request {row.req_id} reads a cell that was never written, or was freed"
        )
        return cells

    def _write(self, row: PlanRow, past: list[int], spoilt: bool, written: set[int]) -> list[int]:
        size, table = self.page_size, self.tables[row.slot]
        ids = row.ids if row.ids is not None else (self.last[row.slot],)
        assert len(ids) == row.count and UNWRITTEN not in ids
        # A NaN in what is read, or in this row, is in all that the row writes.
        sick = min(past) if past else 0
        if sick <= SPOILED or spoilt:
            fresh = [sick if sick <= SPOILED else SPOILED - row.req_id] * row.count
        else:
            before, fresh = past[-1] if past else 0, []
            for token in ids:
                before = cell_after(before, token)
                fresh.append(before)
        mine = table[row.start // size : -(-(row.start + row.count) // size)]
        assert written.isdisjoint(mine), "two rows of one step write one page"
        written.update(mine)
        index = row.start
        for cell in fresh:
            self.pages[table[index // size]][index % size] = cell
            index += 1
        return fresh

    def free(self, page: int) -> None:
        """Nobody owns the page: whoever reads it now finds out."""
        self.pages[page] = [FREED] * self.page_size
