"""Writes products of few rows with a matrix as it lies in memory, a vector of columns at a time."""

from __future__ import annotations

from llvmlite import ir

from headrace.runtime.backends.step_frame import Frame, Out
from headrace.runtime.backends.vector_code import F32, pieces

PART_BYTES = 128 << 10  # weights that a thread takes at a time


class LaneProducts:
    """Computes all rows of the frame, also those that do not live: their inputs are whatever lies there."""

    def __init__(self, frame: Frame) -> None:
        self.frame, self.code = frame, frame.code
        # Outputs computed side by side: half of the registers hold sums, the others weights and inputs.
        self.block = max(1, min(8, frame.means.registers // 2 // frame.rows))

    def end(self) -> None:
        """Nothing was changed that others rely on."""

    def write(
        self, weight: ir.Value, bias: ir.Value | None, columns: int, outputs: int, out: Out, source: ir.Value
    ) -> None:
        """out(row, output, value) for each number of source Wᵀ + bias; a team shares the outputs."""
        code, to = self.code, self.code.to
        size = max(1, PART_BYTES // (columns * code.item) // 8) * 8
        with self.frame.parts(code.whole(-(-outputs // size))) as part:
            begin = to.mul(part, code.whole(size))
            end = code.smaller_whole(to.add(begin, code.whole(size)), code.whole(outputs))
            if outputs % self.block:
                even = to.sub(end, to.srem(to.sub(end, begin), code.whole(self.block)))
            else:
                even = end
            with code.loop(begin, even, self.block) as output:
                self._block(weight, bias, columns, output, self.block, out, source)
            if outputs % self.block:
                with code.loop(even, end) as output:
                    self._block(weight, bias, columns, output, 1, out, source)

    def _block(
        self,
        weight: ir.Value,
        bias: ir.Value | None,
        columns: int,
        output: ir.Value,
        count: int,
        out: Out,
        source: ir.Value,
    ) -> None:
        """The outputs [output, output + count) of all rows."""
        code, to, rows = self.code, self.code.to, range(self.frame.rows)
        lines = [
            code.at(weight, to.mul(to.add(output, code.whole(each)), code.whole(columns)), code.item)
            for each in range(count)
        ]
        sums = {
            (each, row, lanes): code.variable(code.splat(0.0, lanes))
            for lanes in dict.fromkeys(lanes for _, lanes in pieces(columns, code.lanes))
            for each in range(count)
            for row in rows
        }

        def work(index: ir.Value, lanes: int) -> None:
            weights = [code.load_stored(code.at(line, index, code.item), lanes) for line in lines]
            for row in rows:
                given = code.load(code.at(source, to.add(index, code.whole(row * columns))), lanes)
                for each in range(count):
                    place = sums[each, row, lanes]
                    to.store(code.mul_add(weights[each], given, code.read(place)), place)

        code.over(columns, work)
        for each in range(count):
            number = to.add(output, code.whole(each))
            start = None if bias is None else to.load(code.at(bias, number), align=4, typ=F32)
            for row in rows:
                value = start
                for (other, mine, _), place in sums.items():
                    if (other, mine) == (each, row):
                        found = code.total(code.read(place))
                        value = found if value is None else to.fadd(value, found)
                out(code.whole(row), number, value)
