"""Writes the inner loops of a native function: numbers, vectors and loops over memory, as LLVM's text form.

Everything is computed in float32, whatever is stored. A vector is as wide as a register of this CPU; what a length
leaves over is done with narrower ones, so no length is refused. Sums run in an order that depends on the length
alone: never on how many rows or threads there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from llvmlite import ir

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32 = ir.FloatType()
POINTER = ir.PointerType()
LOG2_E = 1.44269504088896341
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
# exp(f) = 1 + f + f² · these, highest power first, for |f| <= ln 2 / 2: within 2 units of the last place.
EXP_TERMS = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
ROUNDER = 12582912.0  # 1.5 * 2**23: adding it leaves the nearest whole number in the low bits
ROUNDER_BITS = 0x4B400000


def pieces(length: int, width: int) -> list[tuple[int, int]]:
    """`length` cut into (begin, size): as many of `width` as fit, then falling powers of two."""
    found = []
    begin = 0
    while begin < length:
        while width > length - begin:
            width //= 2
        found.append((begin, width))
        begin += width
    return found


class Code:
    """One function that is being written. `lanes`: float32 numbers of a register; `stored`: what weights and KV
    are stored as, "float32" or "bfloat16"."""

    def __init__(
        self, module: ir.Module, name: str, arguments: Sequence[ir.Type], lanes: int, stored: str
    ) -> None:
        self.module = module
        self.function = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), name)
        self.entry = ir.IRBuilder(self.function.append_basic_block("entry"))
        self.to = ir.IRBuilder(self.function.append_basic_block("body"))
        self.lanes = lanes
        self.wide = stored == "float32"
        self.item = 4 if self.wide else 2

    def finish(self) -> None:
        self.to.ret_void()
        self.entry.branch(self.function.basic_blocks[1])

    # -- numbers -----------------------------------------------------------------------------------------------

    @staticmethod
    def whole(number: int) -> ir.Constant:
        return ir.Constant(I64, number)

    @staticmethod
    def real(number: float) -> ir.Constant:
        return ir.Constant(F32, number)

    def splat(self, value: ir.Value | float, lanes: int) -> ir.Value:
        """A float32 vector of `lanes` times the same."""
        if isinstance(value, int | float):
            return self._same(self.real(float(value)), lanes)
        vector = ir.VectorType(F32, lanes)
        rest = ir.Constant(vector, ir.Undefined)
        one = self.to.insert_element(rest, value, ir.Constant(I32, 0))
        return self.to.shuffle_vector(one, rest, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))

    def whole_splat(self, value: int, lanes: int) -> ir.Value:
        """An int32 vector of `lanes` times the same."""
        return self._same(ir.Constant(I32, value), lanes)

    @staticmethod
    def _same(one: ir.Constant, lanes: int) -> ir.Constant:
        # Spelled short: written out, these constants are most of the text that LLVM has to read.
        found = ir.FormattedConstant(ir.VectorType(one.type, lanes), "")
        found.constant = f"splat ({one.type} {one.get_reference()})"
        return found

    def mul_add(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """a * b + c, rounded once where the CPU can."""
        return self.to.call(self._built_in("fmuladd", a.type, 3), [a, b, c])

    def _built_in(self, name: str, kind: ir.Type, arguments: int) -> ir.Function:
        """LLVM's own function over `kind`, float32 or a vector of it."""
        suffix = "f32" if kind == F32 else f"v{kind.count}f32"
        full = f"llvm.{name}.{suffix}"
        found = self.module.globals.get(full)
        if found is None:
            found = ir.Function(self.module, ir.FunctionType(kind, [kind] * arguments), full)
        return found

    def total(self, vector: ir.Value) -> ir.Value:
        """The sum of a vector's numbers, added in pairs of halves."""
        count = vector.type.count
        while count > 1:
            count //= 2
            low, high = (
                ir.Constant(ir.VectorType(I32, count), list(range(first, first + count)))
                for first in (0, count)
            )
            rest = ir.Constant(vector.type, ir.Undefined)
            vector = self.to.fadd(
                self.to.shuffle_vector(vector, rest, low), self.to.shuffle_vector(vector, rest, high)
            )
        return self.to.extract_element(vector, ir.Constant(I32, 0))

    def larger(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.to.select(self.to.fcmp_ordered(">", a, b), a, b)

    def smaller_whole(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.to.select(self.to.icmp_signed("<", a, b), a, b)

    def root(self, value: ir.Value) -> ir.Value:
        return self.to.call(self._built_in("sqrt", F32, 1), [value])

    def exp(self, x: ir.Value) -> ir.Value:
        """e to each number of a vector. NaN stays NaN; below -87 the least normal number stands for zero."""
        lanes = x.type.count
        to, whole = self.to, ir.VectorType(I32, lanes)
        for bound, order in ((-87.3, "<"), (88.3, ">")):
            limit = self.splat(bound, lanes)
            x = to.select(to.fcmp_ordered(order, x, limit), limit, x)
        shifted = self.mul_add(x, self.splat(LOG2_E, lanes), self.splat(ROUNDER, lanes))
        power = to.fsub(shifted, self.splat(ROUNDER, lanes))
        rest = self.mul_add(power, self.splat(-LN2_HIGH, lanes), x)
        rest = self.mul_add(power, self.splat(-LN2_LOW, lanes), rest)
        terms = self.splat(EXP_TERMS[0], lanes)
        for term in EXP_TERMS[1:]:
            terms = self.mul_add(terms, rest, self.splat(term, lanes))
        near = to.fadd(self.mul_add(terms, to.fmul(rest, rest), rest), self.splat(1.0, lanes))
        bits = to.sub(to.bitcast(shifted, whole), self.whole_splat(ROUNDER_BITS, lanes))
        bits = to.shl(bits, self.whole_splat(23, lanes))
        found = to.bitcast(to.add(to.bitcast(near, whole), bits), x.type)
        return to.select(to.fcmp_unordered("uno", x, x), x, found)

    # -- memory ------------------------------------------------------------------------------------------------

    def at(self, base: ir.Value, index: ir.Value | int, item: int = 4) -> ir.Value:
        """The address of number `index` from `base`, each of `item` bytes."""
        if isinstance(index, int):
            if index == 0:
                return base
            index = self.whole(index)
        offset = self.to.mul(index, self.whole(item)) if item != 1 else index
        return self.to.gep(base, [offset], source_etype=I8)

    def load(self, address: ir.Value, lanes: int) -> ir.Value:
        """Vector of float32 numbers."""
        return self.to.load(address, align=4, typ=ir.VectorType(F32, lanes))

    def store(self, vector: ir.Value, address: ir.Value) -> None:
        self.to.store(vector, address, align=4)

    def load_stored(self, address: ir.Value, lanes: int) -> ir.Value:
        """Vector of stored numbers, as float32."""
        if self.wide:
            return self.load(address, lanes)
        words = ir.VectorType(I32, lanes)
        short = self.to.load(address, align=2, typ=ir.VectorType(I16, lanes))
        bits = self.to.shl(self.to.zext(short, words), self.whole_splat(16, lanes))
        return self.to.bitcast(bits, ir.VectorType(F32, lanes))

    def store_stored(self, vector: ir.Value, address: ir.Value) -> None:
        """Round to what is stored."""
        if self.wide:
            self.store(vector, address)
        else:
            self.to.store(self.round_short(vector), address, align=2)

    def round_short(self, vector: ir.Value) -> ir.Value:
        """float32 to bfloat16, as int16: to nearest, ties to even; NaN stays NaN."""
        to, lanes = self.to, vector.type.count
        words = ir.VectorType(I32, lanes)
        bits = to.bitcast(vector, words)
        high = to.lshr(bits, self.whole_splat(16, lanes))
        odd = to.and_(high, self.whole_splat(1, lanes))
        up = to.add(to.add(bits, odd), self.whole_splat(0x7FFF, lanes))
        near = to.lshr(up, self.whole_splat(16, lanes))
        broken = to.fcmp_unordered("uno", vector, vector)
        near = to.select(broken, self.whole_splat(0x7FC0, lanes), near)
        return to.trunc(near, ir.VectorType(I16, lanes))

    def word(self, address: ir.Value, kind: ir.Type = I64) -> ir.Value:
        """An integer, as int64."""
        value = self.to.load(address, align=kind.width // 8, typ=kind)
        return value if kind is I64 else self.to.sext(value, I64)

    def pointer(self, address: ir.Value) -> ir.Value:
        return self.to.load(address, align=8, typ=POINTER)

    # -- control -----------------------------------------------------------------------------------------------

    def place(self, kind: ir.Type) -> ir.Value:
        """A variable. The compiler keeps it in a register."""
        return self.entry.alloca(kind)

    def variable(self, start: ir.Value) -> ir.Value:
        place = self.place(start.type)
        self.to.store(start, place)
        return place

    def read(self, place: ir.Value) -> ir.Value:
        return self.to.load(place, typ=place.allocated_type)

    @contextmanager
    def loop(
        self, begin: ir.Value | int, end: ir.Value | int, step: ir.Value | int = 1
    ) -> Iterator[ir.Value]:
        """for index in range(begin, end, step)"""
        begin, end, step = (self.whole(n) if isinstance(n, int) else n for n in (begin, end, step))
        index = self.variable(begin)
        test, body, after = (self.function.append_basic_block(name) for name in ("test", "loop", "after"))
        self.to.branch(test)
        self.to.position_at_end(test)
        now = self.read(index)
        self.to.cbranch(self.to.icmp_signed("<", now, end), body, after)
        self.to.position_at_end(body)
        yield now
        self.to.store(self.to.add(now, step), index)
        self.to.branch(test)
        self.to.position_at_end(after)

    @contextmanager
    def when(self, condition: ir.Value) -> Iterator[None]:
        with self.to.if_then(condition):
            yield

    @contextmanager
    def forever(self) -> Iterator[Callable[[ir.Value], None]]:
        """A loop left where the yielded function is given something true."""
        body, after = self.function.append_basic_block("again"), self.function.append_basic_block("done")
        self.to.branch(body)
        self.to.position_at_end(body)

        def leave_if(condition: ir.Value) -> None:
            go_on = self.function.append_basic_block("on")
            self.to.cbranch(condition, after, go_on)
            self.to.position_at_end(go_on)

        yield leave_if
        self.to.branch(body)
        self.to.position_at_end(after)

    # -- loops over numbers ------------------------------------------------------------------------------------

    def over(self, length: int, work: Callable[[ir.Value, int], None]) -> None:
        """work(index, lanes) for all of a constant length: a loop of full vectors, then what is left over."""
        full = length // self.lanes * self.lanes
        if full:
            with self.loop(0, full, self.lanes) as index:
                work(index, self.lanes)
        for begin, lanes in pieces(length - full, self.lanes):
            work(self.whole(full + begin), lanes)
