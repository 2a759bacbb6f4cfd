"""Writes products of few rows with a matrix as it lies in memory, in the tiles of Intel's AMX.

The weights of 16 outputs and 32 columns are one tile, loaded straight from their rows; so up to 16 rows cost what
one costs, and none of their sums depends on the others.
"""

from __future__ import annotations

from llvmlite import ir

from headrace.runtime.backends.step_form import (
    ACROSS,
    ALONG,
    INPUTS,
    SUMS,
    TILE,
    TILE_COLUMNS,
    TILE_FORM_BYTES,
    WEIGHTS,
)
from headrace.runtime.backends.step_frame import Frame, Out
from headrace.runtime.backends.vector_code import F32, I8, I16, I32


class TileProducts:
    """Born at the beginning of a frame: tiles have the shapes for its live rows from then on, until `end`."""

    def __init__(self, frame: Frame) -> None:
        self.frame, self.code = frame, frame.code
        self._form_tiles()

    def end(self) -> None:
        """The tiles have the shapes that they had before: others on this thread may count on theirs."""
        self._op("ldtilecfg", self.code.at(self.frame.form, TILE_FORM_BYTES, 1))

    def _op(self, name: str, *arguments: ir.Value | int) -> None:
        """One instruction of AMX; an int names a tile."""
        given = [ir.Constant(I8, each) if isinstance(each, int) else each for each in arguments]
        kind = ir.FunctionType(ir.VoidType(), [each.type for each in given])
        self.code.to.call(self.frame.outside(f"llvm.x86.{name}", kind), given)

    def _form_tiles(self) -> None:
        """Tiles get their shapes for as many rows as live. What shapes they had stands behind the new ones."""
        code, to = self.code, self.code.to
        self._op("sttilecfg", code.at(self.frame.form, TILE_FORM_BYTES, 1))
        for word in range(0, TILE_FORM_BYTES, 8):
            to.store(code.whole(0), code.at(self.frame.form, word, 1), align=4)
        to.store(ir.Constant(I8, 1), self.frame.form, align=1)
        per_row = to.trunc(to.mul(self.frame.live, code.whole(4)), I16)
        wide = ir.Constant(I16, 4 * TILE)
        for tile in (*SUMS, *WEIGHTS, *INPUTS):
            to.store(
                wide if tile in WEIGHTS else per_row, code.at(self.frame.form, 16 + 2 * tile, 1), align=2
            )
            to.store(ir.Constant(I8, TILE), code.at(self.frame.form, 48 + tile, 1), align=1)
        self._op("ldtilecfg", self.frame.form)

    def write(
        self, weight: ir.Value, bias: ir.Value | None, columns: int, outputs: int, out: Out, source: ir.Value
    ) -> None:
        """out(row, first output, 16 values) for the numbers of source Wᵀ + bias; a team shares the outputs.

        The last outputs are computed twice where they do not come out even."""
        code, to = self.code, self.code.to
        self._pack(source, columns)
        block = ACROSS * TILE
        stride = ALONG * TILE_COLUMNS
        line = code.whole(columns * 2)
        pitch = to.mul(self.frame.live, code.whole(4))
        with self.frame.parts(code.whole(-(-outputs // block))) as part:
            first = code.smaller_whole(to.mul(part, code.whole(block)), code.whole(outputs - block))
            rows = code.at(weight, to.mul(first, code.whole(columns)), 2)
            for tile in SUMS:
                self._op("tilezero", tile)

            def multiply(column: ir.Value, step: int) -> None:
                """All outputs times 32 columns, onto the sums of this step."""
                inputs = INPUTS[step % len(INPUTS)]
                place = code.at(self.frame.packed, to.mul(to.sdiv(column, code.whole(2)), self.frame.live))
                self._op("tileloadd64", inputs, place, pitch)
                for each in range(ACROSS):
                    tile = step * ACROSS + each
                    mine = WEIGHTS[tile % len(WEIGHTS)]
                    place = code.at(rows, to.add(code.whole(each * TILE * columns), column), 2)
                    self._op("tileloadd64", mine, place, line)
                    self._op("tdpbf16ps", tile, mine, inputs)

            with code.loop(0, columns // stride * stride, stride) as column:
                for step in range(ALONG):
                    multiply(to.add(column, code.whole(step * TILE_COLUMNS)), step)
            for step in range(columns % stride // TILE_COLUMNS):
                multiply(code.whole(columns // stride * stride + step * TILE_COLUMNS), step)
            for tile in SUMS:
                place = code.at(self.frame.sums, to.mul(code.whole(tile * TILE), self.frame.live))
                self._op("tilestored64", tile, place, pitch)
            for each in range(ACROSS):
                output = to.add(first, code.whole(each * TILE))
                added = None if bias is None else code.load(code.at(bias, output), TILE)
                with code.loop(0, self.frame.live) as row:
                    total = added
                    for step in range(ALONG):
                        found = self._column(step * ACROSS + each, row)
                        total = found if total is None else to.fadd(total, found)
                    out(row, output, total)

    def _pack(self, source: ir.Value, columns: int) -> None:
        """`source` rounded to bfloat16, for this thread: pairs of columns, the pair of each row side by side."""
        code, to = self.code, self.code.to
        with code.loop(0, self.frame.live) as row:
            line = code.at(source, to.mul(row, code.whole(columns)))

            def work(index: ir.Value, lanes: int) -> None:
                short = code.round_short(code.load(code.at(line, index), lanes))
                pairs = to.bitcast(short, ir.VectorType(I32, lanes // 2))
                first = to.sdiv(index, code.whole(2))
                for pair in range(lanes // 2):
                    place = to.add(to.mul(to.add(first, code.whole(pair)), self.frame.live), row)
                    word = to.extract_element(pairs, ir.Constant(I32, pair))
                    to.store(word, code.at(self.frame.packed, place), align=4)

            code.over(columns, work)

    def _column(self, tile: int, row: ir.Value) -> ir.Value:
        """The 16 sums of one row in a stored tile."""
        code, to = self.code, self.code.to
        found = ir.Constant(ir.VectorType(F32, TILE), ir.Undefined)
        for each in range(TILE):
            place = to.add(to.mul(code.whole(tile * TILE + each), self.frame.live), row)
            number = to.load(code.at(self.frame.sums, place), align=4, typ=F32)
            found = to.insert_element(found, number, ir.Constant(I32, each))
        return found
