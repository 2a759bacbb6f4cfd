"""Writes the attention of decode rows over their pages, and the storing of their new keys and values."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from llvmlite import ir

from headrace.runtime.backends.step_form import LAYER
from headrace.runtime.backends.step_frame import Frame
from headrace.runtime.backends.vector_code import F32, I32, pieces

MOST_SUMS = 16  # vectors that are summed up at the same time


class AttentionCode:
    """One row and one kv head at a time."""

    def __init__(self, frame: Frame) -> None:
        self.frame, self.code = frame, frame.code

    def write(self, layer: ir.Value, part: ir.Value, qkv: ir.Value, attended: ir.Value) -> None:
        """One row and one kv head: its new key and value are stored, then its query heads read all of theirs."""
        code, sizes, to = self.code, self.frame.sizes, self.code.to
        dim, shared, heads, kv_heads = sizes.head_dim, sizes.shared, sizes.heads, sizes.kv_heads
        row, head = to.sdiv(part, code.whole(kv_heads)), to.srem(part, code.whole(kv_heads))
        mine = code.at(qkv, to.mul(row, code.whole(sizes.qkv)))
        slot = code.word(code.at(self.frame.told("slots"), row), I32)
        length = code.word(code.at(self.frame.told("lengths"), row), I32)
        pages = self.frame.number("pages_per_slot")
        table = code.at(self.frame.told("page_table"), to.mul(slot, pages))
        angles = [
            code.at(self.frame.told(name), to.mul(row, code.whole(dim // 2))) for name in ("cos", "sin")
        ]
        # Cells lie token after token, heads side by side.
        keys, values = (
            code.at(self.frame.told_of(layer, name), to.mul(head, code.whole(dim)), code.item)
            for name in ("keys", "values")
        )
        pitch = kv_heads * dim

        first_query = to.mul(to.mul(head, code.whole(shared)), code.whole(dim))
        for each in range(shared):
            source = code.at(mine, to.add(first_query, code.whole(each * dim)))
            if sizes.head_norms:
                self.frame.norm(source, self.frame.told_of(layer, "query_norm"), source, dim)
            target = code.at(self.frame.query, each * dim)
            self._turn(source, angles, partial(self._put, target))
        key = code.at(mine, to.add(code.whole(heads * dim), to.mul(head, code.whole(dim))))
        value = code.at(key, kv_heads * dim)
        if sizes.head_norms:
            self.frame.norm(key, self.frame.told_of(layer, "key_norm"), key, dim)
        newest = to.sub(length, code.whole(1))
        cell = to.mul(self._cell(table, newest), code.whole(pitch))
        new_key, new_value = (code.at(base, cell, code.item) for base in (keys, values))
        self._turn(key, angles, lambda at, v: code.store_stored(v, code.at(new_key, at, code.item)))
        code.over(
            dim,
            lambda at, lanes: code.store_stored(
                code.load(code.at(value, at), lanes), code.at(new_value, at, code.item)
            ),
        )

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
                part_ = code.at(attended, to.add(to.mul(row, code.whole(heads * dim)), first_query))
                share = to.fdiv(code.real(1.0), sums[each])
                for at, lanes in cuts:
                    found = to.fmul(code.read(read[each, at]), code.splat(share, lanes))
                    code.store(found, code.at(part_, each * dim + at))

    def _turn(
        self, source: ir.Value, angles: list[ir.Value], out: Callable[[ir.Value, ir.Value], None]
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
