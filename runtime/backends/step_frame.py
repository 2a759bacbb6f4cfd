"""What all parts of a native step are written with: its state, its scratch, its team, and the norm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llvmlite import ir

from headrace.runtime.backends.step_form import LAYER, STATE, SUMS, TILE, TILE_FORM_BYTES, Means, StepSizes
from headrace.runtime.backends.vector_code import I32, I64, POINTER, Code, pieces

Out = Callable[[ir.Value, ir.Value, ir.Value], None]  # row, first output, its value or a vector of values


class Frame:
    """The function `name(state)` in `module`, begun. rows: of the largest step.

    live: the rows of this step. scratch: of this thread alone, first the rows that a product takes in; `packed` the
    same as tiles want them, `sums` and `form` of tiles, `query` and `scores` of attention."""

    def __init__(self, module: ir.Module, name: str, sizes: StepSizes, rows: int, means: Means) -> None:
        self.sizes, self.rows, self.means = sizes, rows, means
        self.code = code = Code(module, name, [POINTER], means.lanes, sizes.stored)
        self.state = code.function.args[0]
        self.rank = code.whole(0)
        if means.team:
            rank = self.outside("omp_get_thread_num", ir.FunctionType(I32, []))
            self.rank = code.to.sext(code.to.call(rank, []), I64)
        size, self.room = self.number("thread_scratch"), self.number("scores")
        self.scratch = code.at(self.told("scratch"), code.to.mul(self.rank, size))
        self.packed = code.at(self.scratch, sizes.prepared(rows))
        self.sums = code.at(self.packed, sizes.prepared(rows) // 2)
        self.form = code.at(self.sums, len(SUMS) * TILE * rows)
        self.query = code.at(self.form, 2 * TILE_FORM_BYTES // 4)
        self.scores = code.at(self.query, sizes.shared * sizes.head_dim)
        self.live = self.number("rows")
        self.stream = self.told("stream")
        self._phase = code.variable(self.told("counters"))

    def number(self, name: str) -> ir.Value:
        """A number of the state."""
        return self.code.word(self.code.at(self.state, STATE.index(name), 8))

    def told(self, name: str) -> ir.Value:
        """An address of the state."""
        return self.code.pointer(self.code.at(self.state, STATE.index(name), 8))

    def told_of(self, layer: ir.Value, name: str) -> ir.Value:
        """An address of what `layer` points to."""
        return self.code.pointer(self.code.at(layer, LAYER.index(name), 8))

    def outside(self, name: str, kind: ir.FunctionType) -> ir.Function:
        """A function that is not written here."""
        found = self.code.module.globals.get(name)
        return found if found is not None else ir.Function(self.code.module, kind, name)

    def wait(self) -> None:
        """Go on when all threads are here."""
        if self.means.team:
            self.code.to.call(self.outside("GOMP_barrier", ir.FunctionType(ir.VoidType(), [])), [])

    @contextmanager
    def parts(self, count: ir.Value) -> Iterator[ir.Value]:
        """Whoever is free takes the next of `count` parts. Then the next phase has its own counter."""
        code = self.code
        counter = code.read(self._phase)
        if self.means.team:
            with code.forever() as leave_if:
                part = code.to.atomic_rmw("add", counter, code.whole(1), "monotonic")
                leave_if(code.to.icmp_signed(">=", part, count))
                yield part
        else:
            with code.loop(code.whole(0), count) as part:
                yield part
        code.to.store(code.at(counter, 1, 8), self._phase)

    def into(self, buffer: ir.Value, width: int) -> Out:
        """Takes outputs to the rows of `buffer`."""
        code, to = self.code, self.code.to

        def out(row: ir.Value, output: ir.Value, value: ir.Value) -> None:
            code.store(value, code.at(buffer, to.add(to.mul(row, code.whole(width)), output)))

        return out

    def norm(self, source: ir.Value, weight: ir.Value, target: ir.Value, size: int) -> None:
        """target = source over its root mean square, times weight."""
        code, to = self.code, self.code.to
        squares = {
            lanes: code.variable(code.splat(0.0, lanes))
            for lanes in dict.fromkeys(lanes for _, lanes in pieces(size, code.lanes))
        }

        def square(index: ir.Value, lanes: int) -> None:
            value = code.load(code.at(source, index), lanes)
            to.store(code.mul_add(value, value, code.read(squares[lanes])), squares[lanes])

        code.over(size, square)
        mean = code.real(0.0)
        for place in squares.values():
            mean = to.fadd(mean, code.total(code.read(place)))
        mean = to.fadd(to.fdiv(mean, code.real(size)), code.real(self.sizes.eps))
        factor = to.fdiv(code.real(1.0), code.root(mean))

        def scale(index: ir.Value, lanes: int) -> None:
            value = to.fmul(code.load(code.at(source, index), lanes), code.splat(factor, lanes))
            value = to.fmul(value, code.load(code.at(weight, index), lanes))
            code.store(value, code.at(target, index))

        code.over(size, scale)
