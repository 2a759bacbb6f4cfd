"""Writes the attention of single tokens over the pages of their slots, and the storing of new keys and values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from llvmlite import ir

from headrace.runtime.backends.step_form import LAYER
from headrace.runtime.backends.step_frame import Frame
from headrace.runtime.backends.vector_code import F32, I32, pieces

MOST_SUMS = 16  # vectors that are summed up at the same time


@dataclass(frozen=True, slots=True)
class Place:
    """Addresses of one row and one kv head. first_key: of the head's numbers within a token's keys; line: of the
    row's queries, keys and values; keys, values: of the head in the layer's first cell."""

    row: ir.Value
    first_key: ir.Value
    line: ir.Value
    position: ir.Value
    table: ir.Value
    keys: ir.Value
    values: ir.Value
    angles: tuple[ir.Value, ir.Value]


class AttentionCode:
    """One row and one kv head at a time. All keys of a step are stored before any are read: its rows may be tokens
    of one slot."""

    def __init__(self, frame: Frame) -> None:
        self.frame, self.code = frame, frame.code
        self.pitch = (
            frame.sizes.kv_heads * frame.sizes.head_dim
        )  # from one cell to the next, heads side by side

    def store(self, layer: ir.Value, part: ir.Value, qkv: ir.Value) -> None:
        """The new key and value of one row and kv head go to their cell."""
        code, to, dim = self.code, self.code.to, self.frame.sizes.head_dim
        here = self._place(layer, part, qkv)
        key = code.at(here.line, to.add(code.whole(self.frame.sizes.heads * dim), here.first_key))
        value = code.at(key, self.pitch)
        if self.frame.sizes.head_norms:
            self.frame.norm(key, self.frame.told_of(layer, "key_norm"), key, dim)
        cell = to.mul(self._cell(here.table, here.position), code.whole(self.pitch))
        new_key, new_value = (code.at(base, cell, code.item) for base in (here.keys, here.values))
        self._turn(key, here.angles, partial(self._put_stored, new_key))
        code.over(
            dim, lambda at, lanes: self._put_stored(new_value, at, code.load(code.at(value, at), lanes))
        )

    def read(self, layer: ir.Value, part: ir.Value, qkv: ir.Value, attended: ir.Value) -> None:
        """The query heads of one row and kv head read all cells that they see, their own token's among them."""
        code, sizes, to = self.code, self.frame.sizes, self.code.to
        dim, shared, heads = sizes.head_dim, sizes.shared, sizes.heads
        here = self._place(layer, part, qkv)
        table, keys, values, pitch = here.table, here.keys, here.values, self.pitch
        first_query = to.mul(here.first_key, code.whole(shared))
        for each in range(shared):
            source = code.at(here.line, to.add(first_query, code.whole(each * dim)))
            if sizes.head_norms:
                self.frame.norm(source, self.frame.told_of(layer, "query_norm"), source, dim)
            self._turn(source, here.angles, partial(self._put, code.at(self.frame.query, each * dim)))
        length = to.add(here.position, code.whole(1))
        window = code.word(code.at(layer, LAYER.index("window"), 8))
        first = to.sub(length, window)
        none = to.or_(to.icmp_signed("==", window, code.whole(0)), to.icmp_signed("<", first, code.whole(0)))
        first = to.select(none, code.whole(0), first)
        count = to.sub(length, first)

        def score(cell: ir.Value, place: ir.Value) -> None:
            line = code.at(keys, to.mul(cell, code.whole(pitch)), code.item)
            loaded = [
                (at, code.load_stored(code.at(line, at, code.item), lanes))
                for at, lanes in pieces(dim, code.lanes)
            ]
            for each in range(shared):
                sums: dict[int, ir.Value] = {}
                for at, numbers in loaded:
                    lanes = numbers.type.count
                    query = code.load(code.at(self.frame.query, each * dim + at), lanes)
                    if lanes in sums:
                        sums[lanes] = code.mul_add(query, numbers, sums[lanes])
                    else:
                        sums[lanes] = to.fmul(query, numbers)
                total = None
                for vector in sums.values():
                    found = code.total(vector)
                    total = found if total is None else to.fadd(total, found)
                total = to.fmul(total, code.real(sizes.scale))
                code.store(
                    total,
                    code.at(self.frame.scores, to.add(place, to.mul(self.frame.room, code.whole(each)))),
                )

        self._cells(table, first, length, score)
        sums = [
            self._soften(code.at(self.frame.scores, to.mul(self.frame.room, code.whole(each))), count)
            for each in range(shared)
        ]
        # As many query heads at once as leave registers for their sums.
        cuts = pieces(dim, code.lanes)
        together = max(1, MOST_SUMS // len(cuts))
        for begin in range(0, shared, together):
            group = range(begin, min(shared, begin + together))
            read = {(each, at): code.variable(code.splat(0.0, lanes)) for each in group for at, lanes in cuts}

            def gather(cell: ir.Value, place: ir.Value, group: range = group, read: dict = read) -> None:
                line = code.at(values, to.mul(cell, code.whole(pitch)), code.item)
                weights = [
                    to.load(
                        code.at(self.frame.scores, to.add(place, to.mul(self.frame.room, code.whole(each)))),
                        align=4,
                        typ=F32,
                    )
                    for each in group
                ]
                for at, lanes in cuts:
                    numbers = code.load_stored(code.at(line, at, code.item), lanes)
                    for each, weight in zip(group, weights, strict=True):
                        place_ = read[each, at]
                        to.store(code.mul_add(numbers, code.splat(weight, lanes), code.read(place_)), place_)

            self._cells(table, first, length, gather)
            for each in group:
                part_ = code.at(attended, to.add(to.mul(here.row, code.whole(heads * dim)), first_query))
                share = to.fdiv(code.real(1.0), sums[each])
                for at, lanes in cuts:
                    found = to.fmul(code.read(read[each, at]), code.splat(share, lanes))
                    code.store(found, code.at(part_, each * dim + at))

    def _place(self, layer: ir.Value, part: ir.Value, qkv: ir.Value) -> Place:
        """Where everything of part `part` is: row after row, head after head."""
        code, to, frame = self.code, self.code.to, self.frame
        sizes, kv_heads = frame.sizes, code.whole(frame.sizes.kv_heads)
        row = to.sdiv(part, kv_heads)
        first_key = to.mul(to.srem(part, kv_heads), code.whole(sizes.head_dim))
        slot = code.word(code.at(frame.told("slots"), row), I32)
        keys, values = (
            code.at(frame.told_of(layer, name), first_key, code.item) for name in ("keys", "values")
        )
        cos, sin = (
            code.at(frame.told(name), to.mul(row, code.whole(sizes.head_dim // 2))) for name in ("cos", "sin")
        )
        return Place(
            row,
            first_key,
            line=code.at(qkv, to.mul(row, code.whole(sizes.qkv))),
            position=code.word(code.at(frame.told("positions"), row, 8)),
            table=code.at(frame.told("page_table"), to.mul(slot, frame.number("pages_per_slot"))),
            keys=keys,
            values=values,
            angles=(cos, sin),
        )

    def _turn(
        self, source: ir.Value, angles: tuple[ir.Value, ir.Value], out: Callable[[ir.Value, ir.Value], None]
    ) -> None:
        """out(place, vector) for one head turned by its position."""
        code, to, half = self.code, self.code.to, self.frame.sizes.head_dim // 2
        for at, lanes in pieces(half, code.lanes):
            first, second = (code.load(code.at(source, place), lanes) for place in (at, half + at))
            cos, sin = (code.load(code.at(base, at), lanes) for base in angles)
            out(code.whole(at), to.fsub(to.fmul(first, cos), to.fmul(second, sin)))
            out(code.whole(half + at), code.mul_add(first, sin, to.fmul(second, cos)))

    def _put(self, target: ir.Value, at: ir.Value, vector: ir.Value) -> None:
        self.code.store(vector, self.code.at(target, at))

    def _put_stored(self, target: ir.Value, at: ir.Value, vector: ir.Value) -> None:
        self.code.store_stored(vector, self.code.at(target, at, self.code.item))

    def _cell(self, table: ir.Value, token: ir.Value) -> ir.Value:
        code, to, size = self.code, self.code.to, self.code.whole(self.frame.sizes.page_size)
        page = code.word(code.at(table, to.udiv(token, size)), I32)
        return to.add(to.mul(page, size), to.urem(token, size))

    def _cells(
        self, table: ir.Value, first: ir.Value, end: ir.Value, work: Callable[[ir.Value, ir.Value], None]
    ) -> None:
        """work(cell, place) for the tokens [first, end) of one slot, page after page; place 0 is the first."""
        code, to, size = self.code, self.code.to, self.code.whole(self.frame.sizes.page_size)
        token = code.variable(first)
        with code.forever() as leave_if:
            now = code.read(token)
            leave_if(to.icmp_signed(">=", now, end))
            cell = self._cell(table, now)
            run = code.smaller_whole(to.sub(size, to.urem(now, size)), to.sub(end, now))
            with code.loop(0, run) as index:
                work(to.add(cell, index), to.add(to.sub(now, first), index))
            to.store(to.add(now, run), token)

    def _soften(self, scores: ir.Value, count: ir.Value) -> ir.Value:
        """Scores become weights whose sum is returned. What fills the last vector weighs nothing."""
        code, to, lanes = self.code, self.code.to, self.code.lanes
        low = code.splat(float("-inf"), lanes)
        code.store(low, code.at(scores, count))
        most = code.variable(low)
        with code.loop(code.whole(0), count, lanes) as at:
            to.store(code.larger(code.load(code.at(scores, at), lanes), code.read(most)), most)
        highest = to.extract_element(code.read(most), ir.Constant(I32, 0))
        for lane in range(1, lanes):
            highest = code.larger(to.extract_element(code.read(most), ir.Constant(I32, lane)), highest)
        total = code.variable(code.splat(0.0, lanes))
        with code.loop(code.whole(0), count, lanes) as at:
            weight = code.exp(to.fsub(code.load(code.at(scores, at), lanes), code.splat(highest, lanes)))
            code.store(weight, code.at(scores, at))
            to.store(to.fadd(code.read(total), weight), total)
        return code.total(code.read(total))
